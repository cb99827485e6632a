package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// configure sets up the pod's side, from inside the pod, and returns it. Routes are changed to what was really made.
func configure(h *netlink.Handle, ifname string, addrs []address, routes []*types.Route, mac subnet.MAC) (netlink.Link, error) {
	l, err := h.LinkByName(ifname)
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetHardwareAddr(l, mac[:]); err != nil {
		return nil, fmt.Errorf("set MAC %s: %w", mac, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("set up: %w", err)
	}
	for _, a := range addrs {
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: a.ip.AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.ip.BitLen())}}
		if !a.ip.Is4() {
			ip.Flags = unix.IFA_F_NODAD // the address is ours by claim, and asking takes a second
		}
		if err := h.AddrAdd(l, ip); err != nil {
			return nil, fmt.Errorf("add %s: %w", ip.IPNet, err)
		}
	}
	for _, r := range routes {
		if err := addRoute(h, l, r); err != nil {
			return nil, fmt.Errorf("route %s via %s: %w", &r.Dst, r.GW, err)
		}
	}
	return l, nil
}

// behind is more than the metric of any route that the kernel or we make unless told.
const behind = 2048

func addRoute(h *netlink.Handle, l netlink.Link, r *types.Route) error {
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
	if r.GW == nil {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = netlink.Scope(*r.Scope)
	}
	err := h.RouteAdd(route)
	if ones, _ := r.Dst.Mask.Size(); ones > 0 || r.Priority != 0 || !errors.Is(err, unix.EEXIST) {
		return err
	}
	// Another network of the pod has its default route: this one stands in when that is gone.
	r.Priority = behind + l.Attrs().Index
	route.Priority = r.Priority
	return h.RouteAdd(route)
}

// tune sets the kernel's switches of the pod's side before it goes up. What runtimes do to keep IPv6 away is undone if it has
// an IPv6 address, and done if nobody in the network has one: each pod's link-local messages would only go to all others.
// Router advertisements of other pods are never believed, and a MAC that is set is told to the neighbours.
func (j *job) tune(addrs []address) error {
	has := slices.ContainsFunc(addrs, func(a address) bool { return !a.ip.Is4() })
	known := slices.ContainsFunc(j.node.Networks, func(n netip.Prefix) bool { return !n.Addr().Is4() })
	six := map[string]string{"accept_ra": "0"}
	switch {
	case has:
		six["disable_ipv6"], six["ndisc_notify"] = "0", "1"
	case !known:
		six["disable_ipv6"] = "1"
	}
	err := turn("ipv6", j.ifname, six)
	if !has && errors.Is(err, fs.ErrNotExist) {
		err = nil // a kernel without IPv6
	}
	return errors.Join(err, turn("ipv4", j.ifname, map[string]string{"arp_notify": "1"}))
}

// turn sets the kernel's switches of a device in the network namespace of the calling thread. The way to them leads past those
// of all namespaces (fs/proc/proc_sysctl.c, proc_sys_compare): it is gone once.
func turn(family, device string, knobs map[string]string) error {
	dir := "/proc/sys/net/" + family + "/conf/" + device
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at) //nolint:errcheck // nothing was written to it
	for name, value := range knobs {
		if err := writeAt(at, name, value); err != nil {
			return &fs.PathError{Op: "set", Path: dir + "/" + name, Err: err}
		}
	}
	return nil
}

// writeAt writes a value to a file of a directory.
func writeAt(dir int, name, value string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(value))
	return errors.Join(err, unix.Close(fd))
}

// announce has the kernel tell the other ports of the bridge where the addresses are now: setting a MAC, be it the same, sends
// a gratuitous ARP request and an unsolicited neighbour advertisement for each (see [tune]). A packet socket of our own would
// cost more than all the rest of an ADD: its end waits for an RCU grace period.
func (p *pod) announce(inner netlink.Link, mac subnet.MAC) error {
	return p.link.LinkSetHardwareAddr(inner, mac[:])
}

const (
	patience = time.Second
	step     = 200 * time.Microsecond
)

// awaitCarrier waits until the kernel has seen the link's carrier (net/core/link_watch.c does that in its own time). What
// is sent over a device before that is dropped, and the next attempt to resolve an address comes a second later.
func awaitCarrier(h *netlink.Handle, l netlink.Link) error {
	return await(func() (bool, error) {
		now, err := h.LinkByIndex(l.Attrs().Index)
		if err != nil {
			return false, fmt.Errorf("look at %s: %w", l.Attrs().Name, err)
		}
		return now.Attrs().OperState == netlink.OperUp, nil
	})
}

// awaitLocal waits until the pod takes packets to its IPv6 addresses: their routes in the table local are made by a work
// queue of the kernel (net/ipv6/addrconf.c, addrconf_dad_work), without duplicate address detection too.
func (p *pod) awaitLocal(addrs []address) error {
	for _, a := range addrs {
		if a.ip.Is4() {
			continue
		}
		err := await(func() (bool, error) {
			routes, err := p.link.RouteGet(a.ip.AsSlice())
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, nil // no way yet is no error
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// await asks until the answer is yes. What is late still comes by itself: then it is no error either.
func await(ask func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; {
		if done, err := ask(); err != nil || done || time.Now().After(deadline) {
			return err
		}
		time.Sleep(step) //nolint:forbidigo // a wait for the kernel with a deadline, in a program without a context
	}
}
