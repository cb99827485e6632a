package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// Addresses of groups on a link (RFC 4291 section 2.7.1), and the MAC of the first.
var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = subnet.MAC{0x33, 0x33, 0, 0, 0, 1}
)

// disguises are what pod1 may not send: with another pod's address or MAC, or as a router.
func (v *town) disguises() []probe {
	one, two, far := v.pods[0], v.pods[1], v.pods[2]
	wire := v.wire(one.Netns, "eth0")
	mac, other, gateway := v.mac(one.Netns, "eth0"), v.mac(two.Netns, "eth0"), v.mac(v.hosts[0].Netns, "ovl0")
	link := linkLocal(v.t, one)
	var all []probe
	add := func(name, reason string, at *lab.Wire, frame func(mark []byte) []byte) {
		all = append(all, probe{name: name, reason: reason, at: at, guards: modes("off"), send: func(mark []byte) error { return wire.Send(frame(mark)) }})
	}
	for i, family := range []string{"IPv4", "IPv6"} {
		add("another pod's "+family+" address", "spoofed", v.wire(far.Netns, "eth0"), func(mark []byte) []byte {
			return ethernet(gateway, mac, etherType(two.Addrs[i]), udp(at(two.Addrs[i], 1234), at(far.Addrs[i], probePort), mark))
		})
		add("a remote pod's "+family+" address to a neighbour", "spoofed", v.wire(two.Netns, "eth0"), func(mark []byte) []byte {
			return ethernet(other, mac, etherType(far.Addrs[i]), udp(at(far.Addrs[i], 1234), at(two.Addrs[i], probePort), mark))
		})
	}
	toTwo := v.wire(two.Netns, "eth0")
	for _, kind := range []byte{1, 2} {
		add(fmt.Sprintf("ARP of kind %d for the gateway's address", kind), "spoofed", toTwo, func(mark []byte) []byte {
			return ethernet(other, mac, unix.ETH_P_ARP, append(arp(kind, mac, subnet.Gateway(v.subnets()[0]), other, two.Addrs[0]), mark...))
		})
	}
	add("ARP with another MAC inside", "spoofed", toTwo, func(mark []byte) []byte {
		return ethernet(other, mac, unix.ETH_P_ARP, append(arp(2, gateway, one.Addrs[0], other, two.Addrs[0]), mark...))
	})
	add("neighbour advertisement for another's address", "spoofed", toTwo, func(mark []byte) []byte {
		body := append(far.Addrs[1].AsSlice(), linkLayer(2, mac)...)
		return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, discovery(one.Addrs[1], allNodes, neighborAdvert, 0x20000000, append(body, option(mark)...)))
	})
	add("neighbour advertisement for the gateway's address", "spoofed", toTwo, func(mark []byte) []byte {
		body := append(subnet.Gateway(v.subnets()[1]).AsSlice(), linkLayer(2, mac)...)
		return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, discovery(link, allNodes, neighborAdvert, 0x20000000, append(body, option(mark)...)))
	})
	add("router advertisement", "router_advert", toTwo, func(mark []byte) []byte {
		body := append([]byte{0, 0, 0, 0, 0, 0, 0, 0}, linkLayer(1, mac)...)
		return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, discovery(link, allNodes, routerAdvert, 0x40000708, append(body, option(mark)...)))
	})
	add("redirect", "router_advert", toTwo, func(mark []byte) []byte {
		body := append(link.AsSlice(), far.Addrs[1].AsSlice()...)
		return ethernet(other, mac, unix.ETH_P_IPV6, discovery(link, two.Addrs[1], redirectMessage, 0, append(body, option(mark)...)))
	})
	add("a frame of another kind", "spoofed", toTwo, func(mark []byte) []byte { return ethernet(other, mac, 0x88b5, mark) })
	for i := range 2 { // the last: where these pass, the bridge sends to pod1 what is for pod2
		add("another pod's MAC, "+[]string{"IPv4", "IPv6"}[i], "spoofed", v.wire(far.Netns, "eth0"), func(mark []byte) []byte {
			return ethernet(gateway, other, etherType(one.Addrs[i]), udp(at(one.Addrs[i], 1234), at(far.Addrs[i], probePort), mark))
		})
	}
	return all
}

// honest are what pod1 may send.
func (v *town) honest() []probe {
	one, two := v.pods[0], v.pods[1]
	wire, toTwo := v.wire(one.Netns, "eth0"), v.wire(two.Netns, "eth0")
	mac, other := v.mac(one.Netns, "eth0"), v.mac(two.Netns, "eth0")
	link := linkLocal(v.t, one)
	var all []probe
	add := func(name string, frame func(mark []byte) []byte) {
		all = append(all, probe{name: name, reason: "spoofed", at: toTwo, guards: modes("full off"), send: func(mark []byte) error { return wire.Send(frame(mark)) }})
	}
	for i := range 2 {
		add("own address", func(mark []byte) []byte {
			return ethernet(other, mac, etherType(one.Addrs[i]), udp(at(one.Addrs[i], 1234), at(two.Addrs[i], probePort), mark))
		})
	}
	add("own ARP", func(mark []byte) []byte {
		return ethernet(broadcast, mac, unix.ETH_P_ARP, append(arp(2, mac, one.Addrs[0], other, two.Addrs[0]), mark...))
	})
	add("ARP probe (RFC 5227)", func(mark []byte) []byte {
		return ethernet(broadcast, mac, unix.ETH_P_ARP, append(arp(1, mac, netip.IPv4Unspecified(), subnet.MAC{}, one.Addrs[0]), mark...))
	})
	add("own neighbour advertisement", func(mark []byte) []byte {
		body := append(one.Addrs[1].AsSlice(), linkLayer(2, mac)...)
		return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, discovery(one.Addrs[1], allNodes, neighborAdvert, 0x20000000, append(body, option(mark)...)))
	})
	add("own link-local address", func(mark []byte) []byte {
		return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, udp(at(link, 1234), at(allNodes, probePort), mark))
	})
	return all
}

func (v *town) subnets() []netip.Prefix {
	all, err := v.hosts[0].Subnets()
	need(v.t, err)
	return all
}

// linkLocal is the pod's own, once it may be used.
func linkLocal(t *testing.T, p *lab.Pod) (a netip.Addr) {
	need(t, lab.Eventually("a link-local address", func() error {
		text, err := p.Output(nil, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link")
		if err != nil || strings.Contains(text, "tentative") || strings.Contains(text, "dadfailed") {
			return fmt.Errorf("%s: %w", text, err)
		}
		for _, word := range strings.Fields(text) {
			if prefix, err := netip.ParsePrefix(word); err == nil {
				a = prefix.Addr()
				return nil
			}
		}
		return errors.New("none yet")
	}))
	return a
}

// TestAntiSpoof lets a pod send what is not its own, and the same without antispoof.
func TestAntiSpoof(t *testing.T) {
	lab.Need(t)
	v := newTown(t, "spoof", nil)
	for _, p := range v.pods {
		_, err := p.Ping(v.pods[2].Addrs[0]) // so that nobody has to ask for MACs later
		need(t, err)
	}
	disguises, honest := v.disguises(), v.honest()
	v.pass("full", slices.Concat(disguises, honest))
	v.overLinkLocal()
	v.duplicate()
	v.again("--antispoof=false")
	v.pass("off", slices.Concat(honest, disguises))
}

// duplicate gives two pods the same link-local address: the second one is told so by the first, through the filter. An
// address of its own it gets.
func (v *town) duplicate() {
	one, two := v.pods[0], v.pods[1]
	asks := func(target string) func([]byte) bool {
		text := ip(target).As16()
		return func(f []byte) bool { // a neighbour solicitation from ::
			return len(f) >= 78 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[54] == 135 && bytes.Equal(f[22:38], make([]byte, 16)) && bytes.Equal(f[62:78], text[:])
		}
	}
	for _, c := range []struct {
		pod        *lab.Pod
		addr, want string
	}{{two, "fe80::77", "scope link"}, {one, "fe80::78", "scope link"}, {one, "fe80::77", "dadfailed"}} {
		_, err := c.pod.Output(nil, "ip", "addr", "add", c.addr+"/64", "dev", "eth0")
		need(v.t, err)
		need(v.t, lab.Eventually("duplicate address detection of "+c.addr, func() error {
			text, err := c.pod.Output(nil, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "to", c.addr)
			settled := strings.Contains(text, "dadfailed") || !strings.Contains(text, "tentative")
			if err != nil || !settled || !strings.Contains(text, c.want) || c.want != "dadfailed" && strings.Contains(text, "dadfailed") {
				return fmt.Errorf("%s: %w", text, err)
			}
			return nil
		}))
	}
	if n := v.wire(two.Netns, "eth0").In(asks("fe80::78")); n == 0 {
		v.t.Error("pod1 asked nobody whether its address is free: the test proves nothing")
	}
}

// overLinkLocal sends from pod to pod by link-local addresses.
func (v *town) overLinkLocal() {
	ear, err := v.pods[1].Listen(probePort)
	need(v.t, err)
	defer ear.Close()
	to := linkLocal(v.t, v.pods[1])
	need(v.t, v.pods[0].Do(func() error {
		conn, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: to.AsSlice(), Port: probePort, Zone: "eth0"})
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("hello"))
		return errors.Join(err, conn.Close())
	}))
	need(v.t, lab.Eventually("link-local traffic", func() error {
		if len(ear.Heard()) == 0 {
			return errors.New("nothing is heard")
		}
		return nil
	}))
}
