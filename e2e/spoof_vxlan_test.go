package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// Where probes go: a port at which nobody listens.
const probePort = 9999

// attack is how VXLAN packets of our network are forged.
type attack struct {
	from   *lab.Wire // eth0 of whoever sends
	srcMAC subnet.MAC
	dstMAC subnet.MAC
	src    netip.Addr // outer
	dst    netip.Addr
	vni    uint32
}

// carry sends an inner frame, whole or in fragments.
func (a attack) carry(frame []byte, inFragments bool) error {
	text := vxlan(a.vni, frame)
	whole := udp(at(a.src, 40000), at(a.dst, 8472), text)
	parts := [][]byte{whole}
	if inFragments {
		parts = fragments(a.src, a.dst, unix.IPPROTO_UDP, whole[20:])
	}
	for _, p := range parts {
		if err := a.from.Send(ethernet(a.dstMAC, a.srcMAC, unix.ETH_P_IP, p)); err != nil {
			return err
		}
	}
	return nil
}

// attackFrom is one from a machine on the switch to host1.
func (v *town) attackFrom(h *lab.Host, src string) attack {
	return attack{
		from: v.wire(h.Netns, "eth0"), srcMAC: v.mac(h.Netns, "eth0"), dstMAC: v.mac(v.hosts[0].Netns, "eth0"),
		src: ip(src), dst: ip(v.hosts[0].Addr), vni: 1,
	}
}

// outside are VXLAN packets that must not get in.
func (v *town) outside() []probe {
	host := v.hosts[0]
	vtep, own := subnet.VTEPMAC(1, "host1"), subnet.VTEPMAC(1, "host2")
	pod, far := v.pods[0].Addrs, v.pods[2].Addrs
	inner := func(to subnet.MAC, src, dst netip.Addr, mark []byte) []byte {
		return ethernet(to, own, etherType(src), udp(at(src, 1234), at(dst, probePort), mark))
	}
	stranger, member := v.attackFrom(v.stranger, "192.0.2.66"), v.attackFrom(v.hosts[2], "192.0.2.9")
	vtepAddr := v.subnets()[0].Addr()
	toPod, toHost := v.wire(v.pods[0].Netns, "eth0"), v.wire(host.Netns, "overlay.1")
	var all []probe
	add := func(name, reason string, at *lab.Wire, delivered string, send func(mark []byte) error) {
		all = append(all, probe{name: name, reason: reason, at: at, guards: modes(delivered), send: send})
	}
	for i, family := range []string{"IPv4", "IPv6"} {
		add("stranger, "+family, "stranger", toPod, "off", func(mark []byte) error { return stranger.carry(inner(vtep, far[i], pod[i], mark), false) })
		add("member with another member's source, "+family, "stranger", toPod, "off vtep", func(mark []byte) error { return member.carry(inner(vtep, far[i], pod[i], mark), false) })
	}
	add("stranger in fragments", "stranger", toPod, "off", func(mark []byte) error { return stranger.carry(inner(vtep, far[0], pod[0], mark), true) })
	add("member in fragments", "stranger", toPod, "off vtep", func(mark []byte) error { return member.carry(inner(vtep, far[0], pod[0], mark), true) })
	add("stranger to all, a service of the host", "not_unicast", toHost, "off", func(mark []byte) error {
		return stranger.carry(inner(broadcast, far[0], vtepAddr, mark), false)
	})
	add("member to all", "not_unicast", toHost, "off", func(mark []byte) error {
		return member.carry(inner(broadcast, v.pods[3].Addrs[0], vtepAddr, mark), false)
	})
	add("stranger's ARP", "stranger", toHost, "off", func(mark []byte) error {
		return stranger.carry(ethernet(vtep, own, unix.ETH_P_ARP, append(arp(2, own, far[0], vtep, vtepAddr), mark...)), false)
	})
	add("member's ARP", "stranger", toHost, "off vtep", func(mark []byte) error {
		return member.carry(ethernet(vtep, own, unix.ETH_P_ARP, append(arp(2, own, far[0], vtep, vtepAddr), mark...)), false)
	})
	add("member with a source outside of the network", "stranger", toHost, "off vtep", func(mark []byte) error {
		return member.carry(inner(vtep, ip("198.51.100.9"), pod[0], mark), false)
	})
	return all
}

// lawful are VXLAN packets that get in: they show that the others are well made.
func (v *town) lawful() []probe {
	vtep, own := subnet.VTEPMAC(1, "host1"), subnet.VTEPMAC(1, "host3")
	member := v.attackFrom(v.hosts[2], "192.0.2.9")
	forged := v.attackFrom(v.stranger, "192.0.2.9") // only the underlay or encryption can keep these out
	toPod := v.wire(v.pods[0].Netns, "eth0")
	var all []probe
	add := func(name string, a attack, inFragments bool, src, dst netip.Addr) {
		all = append(all, probe{name: name, reason: "stranger", at: toPod, guards: modes("full vtep off"), send: func(mark []byte) error {
			return a.carry(ethernet(vtep, own, etherType(src), udp(at(src, 1234), at(dst, probePort), mark)), inFragments)
		}})
	}
	for i := range 2 {
		add("member", member, false, v.pods[3].Addrs[i], v.pods[0].Addrs[i])
	}
	add("member in fragments", member, true, v.pods[3].Addrs[0], v.pods[0].Addrs[0])
	add("process of a member", member, false, ip("192.0.2.9"), v.pods[0].Addrs[0])
	add("forged outer source", forged, false, v.pods[3].Addrs[0], v.pods[0].Addrs[0])
	return all
}

// fromPods are VXLAN packets that pods make by hand, to their own host and to others.
func (v *town) fromPods() []probe {
	pod := v.pods[0]
	a := attack{
		from: v.wire(pod.Netns, "eth0"), srcMAC: v.mac(pod.Netns, "eth0"), dstMAC: v.mac(v.hosts[0].Netns, "ovl0"),
		src: pod.Addrs[0], vni: 1,
	}
	neighbour, far := v.pods[1], v.pods[2]
	var all []probe
	for name, cut := range map[string]bool{"": false, " in fragments": true} {
		own, remote := a, a
		own.dst, remote.dst = ip(v.hosts[0].Addr), ip(v.hosts[1].Addr)
		all = append(all,
			probe{name: "pod to its own host" + name, reason: "pod_vxlan", at: v.wire(neighbour.Netns, "eth0"), guards: modes("off"), send: func(mark []byte) error {
				return own.carry(ethernet(subnet.VTEPMAC(1, "host1"), subnet.VTEPMAC(1, "host2"), unix.ETH_P_IP, udp(at(far.Addrs[0], 1234), at(neighbour.Addrs[0], probePort), mark)), cut)
			}},
			// Its own host's address is lawful at the other host, and so is the inner source.
			probe{name: "pod to another host" + name, reason: "pod_vxlan", at: v.wire(far.Netns, "eth0"), guards: modes("off"), send: func(mark []byte) error {
				return remote.carry(ethernet(subnet.VTEPMAC(1, "host2"), subnet.VTEPMAC(1, "host1"), unix.ETH_P_IP, udp(at(neighbour.Addrs[0], 1234), at(far.Addrs[0], probePort), mark)), cut)
			}})
	}
	slices.SortFunc(all, func(a, b probe) int { return strings.Compare(a.name, b.name) })
	return all
}

// TestGuard sends VXLAN packets to a host that lets in only its peers', and the same with the guard off.
func TestGuard(t *testing.T) {
	lab.Need(t)
	v := newTown(t, "guard", func(v *town) {
		// A host alone has no peers: nobody's packets are let in, not even those that will be lawful.
		far := ip("10.5.35.9")
		to := v.wire(v.pods[0].Netns, "eth0")
		later := v.attackFrom(v.hosts[1], "192.0.2.8")
		v.try(probe{name: "a host alone", reason: "stranger", at: to, send: func(mark []byte) error {
			frame := ethernet(subnet.VTEPMAC(1, "host1"), subnet.VTEPMAC(1, "host2"), unix.ETH_P_IP, udp(at(far, 1234), at(v.pods[0].Addrs[0], probePort), mark))
			return later.carry(frame, false)
		}}, false)
	})
	outside, lawful, pods := v.outside(), v.lawful(), v.fromPods()
	v.pass("full", slices.Concat(outside, lawful, pods))
	v.otherNetwork()
	v.again("--guard=vtep")
	v.pass("vtep", slices.Concat(outside, lawful, pods))
	v.again("--ip-masq=false") // with nothing to be translated, fragments are put together only where they end
	for _, p := range pods {
		if strings.Contains(p.name, "fragments") {
			p.reason = "stranger"
			if strings.Contains(p.name, "another host") {
				p.on = v.hosts[1]
			}
		}
		v.try(p, false)
	}
	v.again("--guard=off") // the other hosts keep theirs
	v.pass("off", slices.Concat(outside, lawful, pods))
}

// otherNetwork makes a VXLAN device of another VNI on the same port: what is for that is not ours to judge.
func (v *town) otherNetwork() {
	host := v.hosts[0]
	_, err := host.Output(nil, "sh", "-ec", "ip link add other7 type vxlan id 7 local 192.0.2.7 dev eth0 dstport 8472 nolearning; ip link set other7 up")
	need(v.t, err)
	a := v.attackFrom(v.stranger, "192.0.2.66")
	a.vni = 7
	to := v.mac(host.Netns, "other7")
	for _, dst := range []subnet.MAC{to, broadcast} {
		v.try(probe{name: "other VNI", reason: "stranger", at: v.wire(host.Netns, "other7"), send: func(mark []byte) error {
			return a.carry(ethernet(dst, subnet.VTEPMAC(7, "host2"), unix.ETH_P_IP, udp(at(ip("10.77.0.1"), 1234), at(ip("10.77.0.2"), probePort), mark)), false)
		}}, true)
	}
}
