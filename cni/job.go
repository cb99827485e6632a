package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// job is one ADD: all that is known before anything is made.
type job struct {
	attachment
	conf   conf
	node   subnet.NodeFile
	pod    *pod
	kernel *conn // the host's
	index  int   // of the host's side, once it is made
	bridge link
	mtu    int
	wish   wish
}

// address is one of the pod's, with the prefix it is in.
type address struct {
	ip      netip.Addr
	prefix  netip.Prefix
	gateway netip.Addr // the zero Addr: none
}

func newJob(c conf, node subnet.NodeFile, p *pod) (*job, error) {
	r := c.request
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
	if j.kernel, err = dial(); err != nil {
		return nil, err
	}
	j.bridge, err = j.kernel.find(name, unix.IFLA_IFNAME)
	why := ""
	switch {
	case err != nil && !errors.Is(err, errNoLink):
		j.kernel.close()
		return nil, err
	case err != nil || j.bridge.name != name || j.bridge.kind != "bridge":
		why = "bridge " + name + " does not exist: overlayd makes it"
	case !j.bridge.up:
		why = "bridge " + name + " is down: overlayd sets it up"
	default:
		return j, nil
	}
	j.kernel.close()
	return nil, types.NewError(types.ErrTryAgainLater, why, "see: systemctl status overlayd; overlayd status")
}

// attach makes the pod's interface. The last step commits: a link without an alias is an ADD that did not end.
func (j *job) attach() (_ *current.Result, err error) {
	if err := j.makeLink(); err != nil { // first: from here on nobody else attaches this, and dhcp needs the pod's interface
		return nil, err
	}
	defer func() {
		if err != nil { // an address is given back when nothing has it any more
			err = errors.Join(err, remove(j.kernel, link{index: j.index, name: j.link}), atHome(func() error { return j.conf.ipam("DEL") }))
		}
	}()
	if err := j.raise(); err != nil { // dhcp asks through it
		return nil, err
	}
	given, routes, dns, err := j.conf.ipamAdd(j.node)
	if err != nil {
		return nil, err
	}
	addrs, err := j.claim(given)
	if err != nil {
		return nil, err
	}
	mac := j.wish.mac
	if mac == (subnet.MAC{}) {
		mac = subnet.AddrMAC(addrs[0].ip)
	}
	routes = append(routes, j.routes(addrs)...)
	if err := j.fill(addrs, routes, mac); err != nil {
		return nil, fmt.Errorf("%s in %s: %w", j.ifname, j.pod.path, err)
	}
	for _, index := range []int{j.index, j.bridge.index} { // the first pod brings the bridge's own carrier
		if err := awaitCarrier(j.kernel, index); err != nil {
			return nil, err
		}
	}
	if err := j.pod.awaitLocal(addrs); err != nil {
		return nil, err
	}
	if err := j.pod.announce(mac); err != nil {
		return nil, fmt.Errorf("%s in %s: %w", j.ifname, j.pod.path, err)
	}
	commit := about(unix.RTM_SETLINK, 0, j.index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(j.alias)))
	if err := j.kernel.do(step{"alias of " + j.link, commit}); err != nil {
		return nil, err
	}
	result := j.result(addrs, routes, mac)
	if result.DNS = j.conf.DNS; result.DNS.IsEmpty() {
		result.DNS = dns
	}
	return result, nil
}

// fill makes the pod's side what it is to be.
func (j *job) fill(addrs []address, routes []*types.Route, mac subnet.MAC) error {
	return j.pod.do(func() (err error) {
		if j.pod.kernel, err = dial(); err != nil {
			return err
		}
		if err := j.tune(addrs); err != nil {
			return err
		}
		return j.configure(addrs, routes, mac)
	})
}

// raise sets the host's side up, before the pod's side: the kernel sees a carrier in the order in which it comes, and what the
// pod then says first must find the port open. A port of a bridge needs no address, and with IPv6 each would cost all others
// some time: the kernel gives it one, tells the pod and walks all routes.
func (j *job) raise() error {
	if err := turn("ipv6", j.link, map[string]string{"disable_ipv6": "1"}); err != nil && !errors.Is(err, fs.ErrNotExist) { // unless the kernel has none
		return err
	}
	req := upped(unix.RTM_NEWLINK, j.index)
	if is(j.conf.HairpinMode) || j.conf.PortIsolation {
		port := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		port.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		slave := port.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
		on := func(kind int, wanted bool) {
			if wanted {
				slave.AddRtAttr(kind, []byte{1})
			}
		}
		on(nl.IFLA_BRPORT_MODE, is(j.conf.HairpinMode)) // a pod reaches itself through its own service
		on(nl.IFLA_BRPORT_ISOLATED, j.conf.PortIsolation)
		req.AddData(port)
	}
	return j.kernel.do(step{"set " + j.link + " up", req})
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
func (j *job) result(addrs []address, routes []*types.Route, mac subnet.MAC) *current.Result {
	const podIndex = 2
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: routes, Interfaces: []*current.Interface{
		{Name: j.bridge.name, Mac: j.bridge.mac.String(), Mtu: j.bridge.mtu},
		{Name: j.link, Mac: j.hostMAC().String(), Mtu: j.mtu},
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
