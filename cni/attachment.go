package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// attachment is one interface of one container in one network.
type attachment struct {
	alias  string // network/container/interface: set as the link's alias, it says that the ADD ended well
	link   string // name of the host's side
	sum    [sha256.Size]byte
	ifname string // of the pod's side
}

// newAttachment derives all names from what identifies an attachment (CNI spec, section "Parameters"), so that nothing
// need be stored to find them again.
func newAttachment(network string, args *skel.CmdArgs) attachment {
	sum := sha256.Sum256([]byte(network + "\x00" + args.ContainerID + "\x00" + args.IfName))
	const digits = unix.IFNAMSIZ - 1 - len("veth") // NetworkManager and udev leave veth* alone
	return attachment{
		alias:  strings.Join([]string{network, args.ContainerID, args.IfName}, "/"),
		link:   "veth" + hex.EncodeToString(sum[:])[:digits],
		sum:    sum,
		ifname: args.IfName,
	}
}

const maxAlias = 255 // IFALIASZ - 1

// attach makes the pod's interface. The last step commits: a link without an alias is an ADD that did not end.
func (a attachment) attach(node subnet.NodeFile, p *pod) (_ *current.Result, err error) {
	if len(a.alias) > maxAlias {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("network name and container ID have %d bytes together, more than %d", len(a.alias), maxAlias), "")
	}
	bridge, err := netlink.LinkByName(node.Bridge)
	if err != nil || bridge.Attrs().Name != node.Bridge {
		return nil, types.NewError(types.ErrTryAgainLater, "bridge "+node.Bridge+" does not exist: overlayd makes it", "see: systemctl status overlayd; overlayd status")
	}
	host, err := a.makeLink(node, bridge, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removed(netlink.LinkDel(host)))
		}
	}()
	addrs, err := a.claim(host, node)
	if err != nil {
		return nil, err
	}
	mac := subnet.AddrMAC(addrs[0])
	if err := p.do(func(h *netlink.Handle) error { return a.configure(h, node, addrs, mac) }); err != nil {
		return nil, fmt.Errorf("%s in %s: %w", a.ifname, p.path, err)
	}
	for _, l := range []netlink.Link{host, bridge} { // the first pod brings the bridge's own carrier
		if err := awaitCarrier(l); err != nil {
			return nil, err
		}
	}
	if err := netlink.LinkSetHairpin(host, true); err != nil { // a pod reaches itself through its own service
		return nil, fmt.Errorf("hairpin of %s: %w", a.link, err)
	}
	if err := netlink.LinkSetAlias(host, a.alias); err != nil {
		return nil, fmt.Errorf("alias of %s: %w", a.link, err)
	}
	return a.result(node, bridge, host, p, addrs, mac), nil
}

// makeLink makes the pair of devices, the pod's side in the pod at once. The rest of an ADD that was cut off is replaced.
func (a attachment) makeLink(node subnet.NodeFile, bridge netlink.Link, p *pod) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = a.link, node.MTU, bridge.Attrs().Index, net.FlagUp
	attrs.HardwareAddr = net.HardwareAddr{0x0e, a.sum[0], a.sum[1], a.sum[2], a.sum[3], a.sum[4]} // given now, udev leaves it alone
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: a.ifname, PeerMTU: uint32(node.MTU), PeerNamespace: netlink.NsFd(p.file.Fd())}
	err := netlink.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if err = a.clear(); err != nil {
			return nil, err
		}
		err = netlink.LinkAdd(veth)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		if l, lookup := netlink.LinkByName(a.link); lookup == nil {
			return nil, fmt.Errorf("the %s device %s has the name %s: remove it", l.Type(), l.Attrs().Name, a.link)
		}
		return nil, fmt.Errorf("%s already has an interface %s", p.path, a.ifname)
	case err != nil:
		return nil, errors.Join(fmt.Errorf("make %s: %w", a.link, err), a.clear())
	}
	return veth, nil
}

// clear removes the half of an earlier ADD. One that ended well stays, and is an error.
func (a attachment) clear() error {
	l, err := a.find()
	if err != nil || l == nil {
		return err
	}
	switch l.Attrs().Alias {
	case "":
		return removed(netlink.LinkDel(l))
	case a.alias:
		return fmt.Errorf("%s is attached already, as %s", a.alias, a.link)
	}
	return fmt.Errorf("%s is the attachment of %s: two of them have one hash", a.link, l.Attrs().Alias)
}

// find returns the host's side, nil when there is none. Only a veth can be one.
func (a attachment) find() (netlink.Link, error) {
	l, err := netlink.LinkByName(a.link)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, nil //nolint:nilnil // "none" is an answer
	case err != nil:
		return nil, fmt.Errorf("look for %s: %w", a.link, err)
	case l.Type() != "veth" || l.Attrs().Name != a.link:
		return nil, nil //nolint:nilnil // somebody else's
	}
	return l, nil
}

// detach removes the attachment, and with the link its name and its address. What is not provably ours stays.
func (a attachment) detach() error {
	l, err := a.find()
	if err != nil || l == nil {
		return err
	}
	if alias := l.Attrs().Alias; alias != "" && alias != a.alias {
		return nil
	}
	return removed(netlink.LinkDel(l))
}

// removed is the outcome of a removal: what was gone before is no error.
func removed(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// maxPods bounds the search in a large subnet: a bridge has at most 1,023 ports.
const maxPods = 1 << 14

// claim gives the link an address of each family: the alternative name that spells it. Names are unique in the kernel, so
// of two plugins that want one address one is told that it exists and takes the next. The search begins at a place of
// this container's own, so that an address just freed is not the next one given.
func (a attachment) claim(l netlink.Link, node subnet.NodeFile) ([]netip.Addr, error) {
	const first = 2 // after the VTEP's and the bridge's
	count := uint64(maxPods)
	for _, s := range node.Subnets {
		if hostBits := s.Addr().BitLen() - s.Bits(); hostBits < 16 {
			count = min(count, 1<<hostBits-first-1) // the last is IPv4's broadcast address
		}
	}
	start := binary.BigEndian.Uint64(a.sum[16:]) % count
	for i := range count {
		offset := first + (start+i)%count
		addrs, err := claimAll(l, node.Subnets, offset)
		if !errors.Is(err, unix.EEXIST) {
			return addrs, err
		}
	}
	return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no free address: all %d of %v are in use", count, node.Subnets), "see: overlayd pods")
}

// claimAll claims the address with the given offset in every subnet, or none.
func claimAll(l netlink.Link, subnets []netip.Prefix, offset uint64) ([]netip.Addr, error) {
	var claimed []netip.Addr
	for _, s := range subnets {
		addr := subnet.Addr(s, offset)
		if err := netlink.LinkAddAltName(l, subnet.AltName(addr)); err != nil {
			for _, c := range claimed {
				err = errors.Join(err, netlink.LinkDelAltName(l, subnet.AltName(c)))
			}
			return nil, fmt.Errorf("claim %s: %w", addr, err)
		}
		claimed = append(claimed, addr)
	}
	return claimed, nil
}

// configure sets up the pod's side, from inside the pod.
func (a attachment) configure(h *netlink.Handle, node subnet.NodeFile, addrs []netip.Addr, mac subnet.MAC) error {
	l, err := h.LinkByName(a.ifname)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if !addr.Is4() {
			if err := a.prepareIPv6(); err != nil {
				return err
			}
		}
	}
	if err := h.LinkSetHardwareAddr(l, mac[:]); err != nil {
		return fmt.Errorf("set MAC %s: %w", mac, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for i, addr := range addrs {
		// No duplicate address detection: the address is ours by claim, and asking takes a second.
		ip := &netlink.Addr{IPNet: netOf(addr, node.Subnets[i]), Flags: unix.IFA_F_NODAD}
		if addr.Is4() {
			ip.Flags = 0
		}
		if err := h.AddrAdd(l, ip); err != nil {
			return fmt.Errorf("add %s: %w", ip.IPNet, err)
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: anywhere(addr), Gw: node.Gateways[i].AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("default route via %s: %w", node.Gateways[i], err)
		}
	}
	return nil
}

// prepareIPv6 undoes what runtimes do to keep IPv6 away, and keeps router advertisements of other pods away.
func (a attachment) prepareIPv6() error {
	for knob, value := range map[string]string{"disable_ipv6": "0", "accept_ra": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+a.ifname+"/"+knob, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

const (
	carrierPatience = time.Second
	carrierStep     = 200 * time.Microsecond
)

// awaitCarrier waits until the kernel has seen the link's carrier (net/core/link_watch.c does that in its own time). What
// is sent over a device before that is dropped, and the next attempt to resolve an address comes a second later.
func awaitCarrier(l netlink.Link) error {
	deadline := time.Now().Add(carrierPatience)
	for {
		now, err := netlink.LinkByIndex(l.Attrs().Index)
		if err != nil {
			return fmt.Errorf("look at %s: %w", l.Attrs().Name, err)
		}
		if s := now.Attrs().OperState; s == netlink.OperUp || time.Now().After(deadline) {
			return nil // late, it still comes up by itself
		}
		time.Sleep(carrierStep) //nolint:forbidigo // a wait for the kernel with a deadline, in a program without a context
	}
}

func netOf(a netip.Addr, s netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(s.Bits(), a.BitLen())}
}

// anywhere is the destination of a default route.
func anywhere(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

// result describes what was made. The bridge comes first: the plugin firewall looks for it there.
func (a attachment) result(node subnet.NodeFile, bridge, host netlink.Link, p *pod, addrs []netip.Addr, mac subnet.MAC) *current.Result {
	const podIndex = 2
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{
		{Name: node.Bridge, Mac: bridge.Attrs().HardwareAddr.String(), Mtu: bridge.Attrs().MTU},
		{Name: a.link, Mac: host.Attrs().HardwareAddr.String(), Mtu: node.MTU},
		{Name: a.ifname, Mac: mac.String(), Mtu: node.MTU, Sandbox: p.path},
	}}
	for i, addr := range addrs {
		gateway := net.IP(node.Gateways[i].AsSlice())
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(podIndex), Address: *netOf(addr, node.Subnets[i]), Gateway: gateway})
		r.Routes = append(r.Routes, &types.Route{Dst: *anywhere(addr), GW: gateway})
	}
	return r
}
