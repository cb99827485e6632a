package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// job is one ADD: all that is known before anything is made.
type job struct {
	attachment
	conf   conf
	node   subnet.NodeFile
	pod    *pod
	bridge netlink.Link
	mtu    int
	wish   wish
}

// address is one of the pod's, with the prefix it is in.
type address struct {
	ip      netip.Addr
	prefix  netip.Prefix
	gateway netip.Addr // the zero Addr: none
}

func newJob(c conf, node subnet.NodeFile, p *pod, r request) (*job, error) {
	j := &job{attachment: newAttachment(c.Name, r.container, r.ifname), conf: c, node: node, pod: p, mtu: c.mtu(node)}
	if len(j.alias) > maxAlias {
		return nil, invalid("network name and container ID have %d bytes together, more than %d", len(j.alias), maxAlias)
	}
	var err error
	if j.wish, err = wishOf(c, r.args, node); err != nil {
		return nil, err
	}
	name, err := c.bridge(node)
	if err != nil {
		return nil, err
	}
	if j.kernel, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	j.bridge, err = j.kernel.LinkByName(name)
	why := ""
	switch {
	case err != nil || j.bridge.Attrs().Name != name || j.bridge.Type() != "bridge":
		why = "bridge " + name + " does not exist: overlayd makes it"
	case j.bridge.Attrs().Flags&net.FlagUp == 0:
		why = "bridge " + name + " is down: overlayd sets it up"
	default:
		return j, nil
	}
	return nil, types.NewError(types.ErrTryAgainLater, why, "see: systemctl status overlayd; overlayd status")
}

// attach makes the pod's interface. The last step commits: a link without an alias is an ADD that did not end.
func (j *job) attach() (_ *current.Result, err error) {
	host, err := j.makeLink() // first: from here on nobody else attaches this, and dhcp needs the pod's interface
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // an address is given back when nothing has it any more
			err = errors.Join(err, removed(j.kernel.LinkDel(host)), j.conf.ipam("DEL"))
		}
	}()
	if err := j.raise(host); err != nil { // dhcp asks through it
		return nil, err
	}
	given, routes, dns, err := j.conf.ipamAdd(j.node)
	if err != nil {
		return nil, err
	}
	addrs, err := j.claim(host, given)
	if err != nil {
		return nil, err
	}
	mac := j.wish.mac
	if mac == (subnet.MAC{}) {
		mac = subnet.AddrMAC(addrs[0].ip)
	}
	routes = append(routes, j.routes(addrs)...)
	var inner netlink.Link
	err = j.pod.do(func(h *netlink.Handle) (err error) {
		if err := j.tune(addrs); err != nil {
			return err
		}
		inner, err = configure(h, j.ifname, addrs, routes, mac)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", j.ifname, j.pod.path, err)
	}
	if err := j.open(host); err != nil {
		return nil, err
	}
	if err := j.pod.awaitLocal(addrs); err != nil {
		return nil, err
	}
	if err := j.pod.announce(inner, mac); err != nil {
		return nil, fmt.Errorf("announce %s: %w", j.ifname, err)
	}
	if err := j.kernel.LinkSetAlias(host, j.alias); err != nil {
		return nil, fmt.Errorf("alias of %s: %w", j.link, err)
	}
	result := j.result(host, addrs, routes, mac)
	if result.DNS = j.conf.DNS; result.DNS.IsEmpty() {
		result.DNS = dns
	}
	return result, nil
}

// open lets packets through the host's side.
func (j *job) open(host netlink.Link) error {
	if is(j.conf.HairpinMode) { // a pod reaches itself through its own service
		if err := j.kernel.LinkSetHairpin(host, true); err != nil {
			return fmt.Errorf("hairpin of %s: %w", j.link, err)
		}
	}
	if j.conf.PortIsolation {
		if err := j.kernel.LinkSetIsolated(host, true); err != nil {
			return fmt.Errorf("isolate %s: %w", j.link, err)
		}
	}
	for _, l := range []netlink.Link{host, j.bridge} { // the first pod brings the bridge's own carrier
		if err := awaitCarrier(j.kernel, l); err != nil {
			return err
		}
	}
	return nil
}

// raise sets the host's side up, before the pod's side: the kernel sees a carrier in the order in which it comes, and what the
// pod then says first must find the port open. A port of a bridge needs no address, and with IPv6 each would cost all others
// some time: the kernel gives it one, tells the pod and walks all routes.
func (j *job) raise(host netlink.Link) error {
	if err := turn("ipv6", j.link, map[string]string{"disable_ipv6": "1"}); err != nil && !errors.Is(err, fs.ErrNotExist) { // unless the kernel has none
		return err
	}
	if err := j.kernel.LinkSetUp(host); err != nil {
		return fmt.Errorf("set %s up: %w", j.link, err)
	}
	return nil
}

// routes are those that this plugin adds, in the order in which the kernel takes them.
func (j *job) routes(addrs []address) []*types.Route {
	var all []*types.Route
	for _, a := range addrs {
		if !a.gateway.IsValid() {
			continue
		}
		gw := net.IP(a.gateway.AsSlice())
		if is(j.conf.IsDefaultGateway) {
			all = append(all, &types.Route{Dst: *anywhere(a.ip), GW: gw})
			continue
		}
		for _, n := range j.node.Networks {
			if n.Addr().Is4() == a.ip.Is4() {
				all = append(all, &types.Route{Dst: *netOf(n), GW: gw})
			}
		}
	}
	for _, r := range j.conf.Routes {
		r := r.Copy()
		if r.GW == nil {
			r.GW = gateway(j.node, r.Dst.IP)
		}
		all = append(all, r)
	}
	return all
}

// result describes what was made. The bridge comes first: the plugin firewall looks for it there.
func (j *job) result(host netlink.Link, addrs []address, routes []*types.Route, mac subnet.MAC) *current.Result {
	const podIndex = 2
	b := j.bridge.Attrs()
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: routes, Interfaces: []*current.Interface{
		{Name: b.Name, Mac: b.HardwareAddr.String(), Mtu: b.MTU},
		{Name: j.link, Mac: host.Attrs().HardwareAddr.String(), Mtu: j.mtu},
		{Name: j.ifname, Mac: mac.String(), Mtu: j.mtu, Sandbox: j.pod.path},
	}}
	for _, a := range addrs {
		ip := &current.IPConfig{Interface: current.Int(podIndex), Address: *netOf(netip.PrefixFrom(a.ip, a.prefix.Bits()))}
		if a.gateway.IsValid() {
			ip.Gateway = a.gateway.AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	return r
}

// netOf keeps host bits.
func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// anywhere is the destination of a default route.
func anywhere(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}
