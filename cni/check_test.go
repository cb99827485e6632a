package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/subnet"
)

// attached is a pod with a MAC, two addresses and a route of its own, and what ADD said of it.
type attached struct {
	act
	link, result string
}

const attachedKeys = `,"routes":[{"dst":"192.0.2.0/24","gw":"10.5.1.3"}]`

func newAttached(t *testing.T) attached {
	t.Helper()
	a := attached{act: act{newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t), "1.1.0"}, link: linkOf("net", "c1", "eth0")}
	a.result = a.do(t, a.ask("ADD", attachedKeys))
	a.do(t, a.ask("CHECK", attachedKeys+prev(a.result)))
	return a
}

// on changes a link of the host.
func (a attached) on(t *testing.T, name string, f func(netlink.Link) error) {
	t.Helper()
	must(t, a.Do(func() error { return withLink(name, f) }))
}

// within changes the pod's interface.
func (a attached) within(t *testing.T, f func(netlink.Link) error) {
	t.Helper()
	must(t, a.pod.Do(func() error { return withLink("eth0", f) }))
}

func withLink(name string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(l)
}

// withAddr changes the global address of one family of a link.
func withAddr(v6 bool, f func(netlink.Link, *netlink.Addr) error) func(netlink.Link) error {
	return func(l netlink.Link) error {
		all, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range all {
			if (a.IP.To4() == nil) == v6 && a.IP.IsGlobalUnicast() {
				return f(l, &a)
			}
		}
		return errors.Join(err, errors.New("no such address"))
	}
}

func withRoute(dst string, f func(*netlink.Route) error) func(netlink.Link) error {
	return func(l netlink.Link) error {
		all, err := netlink.RouteList(l, netlink.FAMILY_ALL)
		for _, r := range all {
			if r.Dst.String() == dst {
				return f(&r)
			}
		}
		return errors.Join(err, fmt.Errorf("no route to %s", dst))
	}
}

// broken are the ways in which a pod can be broken, and what CHECK says of each.
var broken = map[string]struct {
	spoil func(t *testing.T, a *attached)
	says  string
}{
	"the veth is gone": {func(t *testing.T, a *attached) { a.on(t, a.link, netlink.LinkDel) }, "is missing"},
	"the interface has another name": {func(t *testing.T, a *attached) {
		a.within(t, func(l netlink.Link) error { return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "eth7")) })
	}, "interface eth0 is missing"},
	"the interface is down": {func(t *testing.T, a *attached) { a.within(t, netlink.LinkSetDown) }, "interface eth0 is down"},
	"the IPv4 address is gone": {func(t *testing.T, a *attached) {
		a.within(t, withAddr(false, func(l netlink.Link, ip *netlink.Addr) error { return netlink.AddrDel(l, ip) }))
	}, "does not have the address 10.5.1."},
	"the IPv6 address is gone": {func(t *testing.T, a *attached) {
		a.within(t, withAddr(true, func(l netlink.Link, ip *netlink.Addr) error { return netlink.AddrDel(l, ip) }))
	}, "does not have the address fd00:5:1::"},
	"the address has another length": {func(t *testing.T, a *attached) {
		a.within(t, withAddr(false, func(l netlink.Link, ip *netlink.Addr) error {
			other := &netlink.Addr{IPNet: &net.IPNet{IP: ip.IP, Mask: net.CIDRMask(25, 32)}}
			return errors.Join(netlink.AddrAdd(l, other), netlink.AddrDel(l, ip))
		}))
	}, "does not have the address 10.5.1."},
	"the IPv4 default route is gone": {func(t *testing.T, a *attached) {
		a.within(t, withRoute("0.0.0.0/0", func(r *netlink.Route) error { return netlink.RouteDel(r) }))
	}, "route 0.0.0.0/0 via 10.5.1.1 is missing"},
	"the IPv6 default route is gone": {func(t *testing.T, a *attached) {
		a.within(t, withRoute("::/0", func(r *netlink.Route) error { return netlink.RouteDel(r) }))
	}, "route ::/0 via fd00:5:1::1 is missing"},
	"the default route has another gateway": {func(t *testing.T, a *attached) {
		a.within(t, withRoute("0.0.0.0/0", func(r *netlink.Route) error {
			r.Gw = net.IPv4(10, 5, 1, 9)
			return netlink.RouteReplace(r)
		}))
	}, "route 0.0.0.0/0 via 10.5.1.1 is missing"},
	"a configured route is gone": {func(t *testing.T, a *attached) {
		a.within(t, withRoute("192.0.2.0/24", func(r *netlink.Route) error { return netlink.RouteDel(r) }))
	}, "route 192.0.2.0/24 via 10.5.1.3 is missing"},
	"the pod's MAC is another": {func(t *testing.T, a *attached) {
		a.within(t, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9}) })
	}, "has MAC 02:00:00:00:00:09"},
	"the pod's MTU is larger": {func(t *testing.T, a *attached) {
		a.within(t, func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu+1) })
	}, "interface eth0 has MTU 1431"},
	"the host's MTU is smaller": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu-1) })
	}, "has MTU 1429"},
	"the host's MTU is larger": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu+1) })
	}, "has MTU 1431"},
	"the host's side is on no bridge": {func(t *testing.T, a *attached) { a.on(t, a.link, netlink.LinkSetNoMaster) }, "is no port of ovl0"},
	"the host's side is on another bridge": {func(t *testing.T, a *attached) {
		must(t, a.Do(func() error { return plant("br9") }))
		a.on(t, "br9", func(b netlink.Link) error {
			return withLink(a.link, func(l netlink.Link) error { return netlink.LinkSetMaster(l, b) })
		})
	}, "is no port of ovl0"},
	"the host's side is down": {func(t *testing.T, a *attached) { a.on(t, a.link, netlink.LinkSetDown) }, "is down"},
	"the bridge is down":      {func(t *testing.T, a *attached) { a.on(t, bridgeName, netlink.LinkSetDown) }, "bridge ovl0 is down"},
	"the bridge is gone":      {func(t *testing.T, a *attached) { must(t, a.Do(dropBridge)) }, "bridge ovl0: "},
	"the IPv4 name is lost": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error {
			return netlink.LinkDelAltName(l, subnet.AltName(addrs(parsed(t, a.result))[0]))
		})
	}, "does not hold the address 10.5.1."},
	"the IPv6 name is lost": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error {
			return netlink.LinkDelAltName(l, subnet.AltName(addrs(parsed(t, a.result))[1]))
		})
	}, "does not hold the address fd00:5:1::"},
	"another has the name": {func(t *testing.T, a *attached) {
		name := subnet.AltName(addrs(parsed(t, a.result))[0])
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkDelAltName(l, name) })
		must(t, a.Do(func() error { return plant("thief", name) }))
	}, "does not hold the address"},
	"the alias is lost": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkSetAlias(l, "") })
	}, `has the alias ""`},
	"the alias is another's": {func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkSetAlias(l, "net/c2/eth0") })
	}, "net/c2/eth0"},
	"prevResult tells another address": {func(t *testing.T, a *attached) {
		a.result = strings.ReplaceAll(a.result, addrs(parsed(t, a.result))[0].String(), "10.5.1.200")
	}, "10.5.1.200"},
}

func TestCHECKFindsEveryFault(t *testing.T) {
	for name, test := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttached(t)
			test.spoil(t, &a)
			a.refuse(t, a.ask("CHECK", attachedKeys+prev(a.result)), codeDiffers, "net/c1/eth0", test.says)
		})
	}
}

// lawful are changes that others may make; what they do to prevResult, if anything.
var lawful = map[string]func(t *testing.T, a *attached){
	"a further route": func(t *testing.T, a *attached) {
		a.within(t, func(l netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netOf(a.node.Networks[0].Masked()), Gw: net.IPv4(10, 5, 1, 1), Priority: 7})
		})
	},
	"a further address": func(t *testing.T, a *attached) {
		a.within(t, func(l netlink.Link) error {
			return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 9), Mask: net.CIDRMask(32, 32)}})
		})
	},
	"routes in another table": func(t *testing.T, a *attached) { // sbr, vrf
		for _, dst := range []string{"192.0.2.0/24", "0.0.0.0/0", "::/0"} {
			a.within(t, withRoute(dst, func(r *netlink.Route) error {
				moved := *r
				moved.Table = 100
				return errors.Join(netlink.RouteAdd(&moved), netlink.RouteDel(r))
			}))
		}
	},
	"a smaller MTU in the pod": func(t *testing.T, a *attached) { // tuning, which does not tell
		a.within(t, func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) })
	},
	"another MAC that prevResult tells": func(t *testing.T, a *attached) { // tuning
		const mac = "02:00:00:00:00:07"
		a.result = strings.ReplaceAll(a.result, parsed(t, a.result).Interfaces[2].Mac, mac)
		a.within(t, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 7}) })
	},
	"a bridge that was made again": func(t *testing.T, a *attached) {
		must(t, a.Do(dropBridge))
		must(t, a.Do(func() error { return plant(bridgeName) }))
		a.on(t, bridgeName, func(b netlink.Link) error {
			return errors.Join(netlink.LinkSetUp(b), withLink(a.link, func(l netlink.Link) error { return netlink.LinkSetMaster(l, b) }))
		})
	},
	"a queue on the host's side": func(t *testing.T, a *attached) { // bandwidth
		_, err := a.Output(nil, needed(t, "tc"), "qdisc", "add", "dev", a.link, "root", "tbf", "rate", "1mbit", "latency", "25ms", "burst", "10000")
		must(t, err)
	},
	"another MTU of new pods": func(t *testing.T, a *attached) {
		a.node.MTU = 1300
		a.write(t)
	},
	"a further altname": func(t *testing.T, a *attached) {
		a.on(t, a.link, func(l netlink.Link) error { return netlink.LinkAddAltName(l, "web-1") })
	},
}

func TestCHECKToleratesWhatOthersMayDo(t *testing.T) {
	for name, change := range lawful {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttached(t)
			change(t, &a)
			a.do(t, a.ask("CHECK", attachedKeys+prev(a.result)))
		})
	}
}

func TestCHECKWantsAPrevResultOfThisAttachment(t *testing.T) {
	a := newAttached(t)
	for name, result := range map[string]string{
		"without interfaces": `{"cniVersion":"1.1.0","ips":[{"address":"10.5.1.2/24"}]}`,
		"of another":         strings.ReplaceAll(a.result, a.link, "veth00000000000"),
		"without sandbox":    strings.ReplaceAll(a.result, "sandbox", "socketPath"),
		"without address":    strings.ReplaceAll(a.result, `"interface": 2`, `"interface": 1`),
	} {
		t.Run(name, func(t *testing.T) {
			a.refuse(t, a.ask("CHECK", attachedKeys+prev(result)), types.ErrInvalidNetworkConfig, "prevResult")
		})
	}
}
