package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/subnet"
)

// collect removes the attachments of this network that are not on the list (CNI spec 1.1, section "GC"). It goes on after an
// error and tells all at the end.
func collect(c conf, _ io.Writer) error {
	var given struct {
		Valid *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(c.request.input, &given); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if given.Valid == nil {
		return invalid("cni.dev/valid-attachments is missing: nothing was removed; an empty list removes all attachments of %s", c.Name)
	}
	if c.Delegate != nil {
		return c.delegateOther("GC")
	}
	keep := map[string]bool{}
	for _, v := range *given.Valid {
		keep[strings.Join([]string{c.Name, v.ContainerID, v.IfName}, "/")] = true
	}
	links, err := hostLinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		alias := l.Attrs().Alias
		if keep[alias] || !ownedBy(c.Name, l) {
			continue
		}
		if err := removed(netlink.LinkDel(l)); err != nil {
			errs = append(errs, fmt.Errorf("remove %s of %s: %w", l.Attrs().Name, alias, err))
		}
	}
	return errors.Join(append(errs, c.ipam("GC"))...)
}

// ownedBy says whether the link is provably an attachment in the network: its alias makes its name.
func ownedBy(network string, l netlink.Link) bool {
	parts := strings.Split(l.Attrs().Alias, "/")
	if l.Type() != "veth" || len(parts) != 3 || parts[0] != network {
		return false
	}
	return newAttachment(network, parts[1], parts[2]).link == l.Attrs().Name
}

// hostLinks lists all links. A list that changed while it was read is read again.
func hostLinks() ([]netlink.Link, error) {
	const tries = 5
	var links []netlink.Link
	var err error
	for range tries {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// status answers whether an ADD can be served now (CNI spec 1.1, section "STATUS"). Runtimes ask every few seconds: it looks
// at the node file and at links only.
func status(c conf, _ io.Writer) error {
	node, err := readNode(c.NodeFile)
	if err != nil {
		code := uint(codeUnserved)
		if node.Deadline == subnet.DeadlineLost {
			code = codeCutOff
		}
		return types.NewError(code, err.Error(), "see: systemctl status overlayd; overlayd status")
	}
	if c.Delegate != nil {
		return c.delegateOther("STATUS")
	}
	name, err := c.bridge(node)
	if err != nil {
		return types.NewError(codeUnserved, err.Error(), "")
	}
	links, err := hostLinks()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name && l.Attrs().Flags&net.FlagUp != 0 }) {
		return types.NewError(codeCutOff, "bridge "+name+" is missing or down: overlayd makes it", "see: systemctl status overlayd; overlayd status")
	}
	if c.IPAM.Type != "" {
		return c.ipam("STATUS")
	}
	if total := subnet.Room(node.Subnets); used(links, node.Subnets[0]) >= total {
		return types.NewError(codeUnserved, fmt.Sprintf("no free address: all %d of %v are in use", total, node.Subnets), "see: overlayd pods")
	}
	return nil
}

// used counts the links that hold an address of the subnet.
func used(links []netlink.Link, s netip.Prefix) uint64 {
	var n uint64
	for _, l := range links {
		if slices.ContainsFunc(l.Attrs().AltNames, func(name string) bool {
			a, ok := subnet.ParseAltName(name)
			return ok && s.Contains(a)
		}) {
			n++
		}
	}
	return n
}

func addrOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}
