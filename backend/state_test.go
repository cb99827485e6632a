package backend_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// diffText spells changes a line each.
func diffText(changes []backend.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s\n", c)
	}
	return b.String()
}

// apply makes the changes as a kernel without a will of its own would.
func apply(have backend.State, changes []backend.Change) backend.State {
	rows := maps.Clone(have)
	for _, c := range changes {
		if c.New != nil {
			rows.Add(c.New) // in the place of the old one, for both have one key
			continue
		}
		maps.DeleteFunc(rows, func(_, row backend.Entry) bool { return row == c.Old })
	}
	return rows
}

// drawState makes a state of up to six peers in one of a few shapes each, so that two of them have much in common.
func drawState(t *rapid.T, name string) backend.State {
	pick := func(what string, shapes int) int { return rapid.IntRange(0, shapes).Draw(t, name+" "+what) } // 0: absent
	s := backend.State{}
	if n := pick("device", 2); n > 0 {
		s.Add(backend.VXLAN{Name: "overlay.1", VNI: uint32(n), Up: true})
	}
	if n := pick("other device", 1); n > 0 {
		s.Add(backend.VXLAN{Name: "overlay.2", VNI: 2})
	}
	if n := pick("bridge", 2); n > 0 {
		s.Add(backend.Bridge{Name: "ovl0", MTU: 1400 + n}, backend.Addr{Dev: "ovl0", Prefix: netip.MustParsePrefix("10.5.34.1/24")})
	}
	if n := pick("forwarding", 2); n > 0 {
		s.Add(backend.Sysctl{Name: "net/ipv4/ip_forward", Value: fmt.Sprint(n - 1)})
	}
	for _, family := range []string{backend.FamilyInet, backend.FamilyBridge} {
		if n := pick(family+" table", 2); n > 0 {
			s.Add(backend.Table{Family: family, Filter: backend.Filter{VNI: uint32(n)}})
		}
	}
	if n := pick("pod", 2); n > 0 {
		mac, addr := subnet.MAC{2, 5: byte(n)}, netip.MustParseAddr("fd00:5::7")
		s.Add(backend.Port{Link: "veth1", Bridge: fmt.Sprintf("ovl%d", n)}, backend.PodPort{Link: "veth1"}, backend.PodMAC{Link: "veth1", MAC: mac},
			backend.PodAddr{Set: backend.SetPods, Link: "veth1", Addr: addr, MAC: mac}, backend.PodAddr{Set: backend.SetTargets, Link: "veth1", Addr: addr, MAC: mac})
	}
	if n := pick("foreign chain", 2); n > 0 {
		s.Add(backend.Accept{Chain: backend.Chain{Family: "ip", Table: "filter", Name: "FORWARD"}, In: n == 1, Dev: "ovl0"})
	}
	for peer := range byte(6) {
		vtep := netip.AddrFrom4([4]byte{10, 5, peer, 0})
		what := fmt.Sprintf("peer %d ", peer)
		if n := pick(what+"pair", 2); n > 0 {
			s.Add(backend.Pair{Inner: netip.PrefixFrom(vtep, 24), Outer: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})})
		}
		if n := pick(what+"member", 2); n > 0 {
			s.Add(backend.Member{Set: backend.SetVTEPs, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32)})
		}
		if n := pick(what+"FDB", 2); n > 0 {
			s.Add(backend.FDB{Dev: "overlay.1", MAC: subnet.MAC{2, 5: peer}, Dst: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})})
		}
		if n := pick(what+"neighbour", 2); n > 0 {
			s.Add(backend.Neigh{Dev: "overlay.1", IP: vtep, MAC: subnet.MAC{2, 4: byte(n), 5: peer}})
		}
		if n := pick(what+"nexthop", 2); n > 0 {
			s.Add(backend.Nexthop{ID: uint32(peer), Via: vtep, Dev: fmt.Sprintf("overlay.%d", n)})
		}
		if n := pick(what+"route", 2); n > 0 {
			s.Add(backend.Route{Dst: netip.PrefixFrom(vtep, 24), NHID: uint32(n), Via: vtep, Dev: "overlay.1"})
		}
	}
	return s
}

func TestDiffTurnsTheOneStateIntoTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawState(t, "want"), drawState(t, "have")
		changes := backend.Diff(want, have)
		expected := maps.Clone(want)
		for key, row := range have {
			if _, wanted := want[key]; !wanted && (kind(row) == sysctls || kind(row) == ports) {
				expected[key] = row // a knob stays as it is, a pod's link where it is
			}
		}
		if got := apply(have, changes); got.String() != expected.String() {
			t.Fatalf("had:\n%s\nmade:\n%s\ngot:\n%s\nwant:\n%s", have, diffText(changes), got, expected)
		}
		if again := backend.Diff(want, want); len(again) > 0 {
			t.Fatalf("equal states differ:\n%s", diffText(again))
		}
	})
}

// The kinds of rows, each needing only those before it.
const (
	tables = iota
	members
	podPorts
	devices
	bridges
	sysctls
	ports
	addrs
	fdbs
	neighs
	nexthops
	routes
	accepts
)

func kind(e backend.Entry) int {
	switch e.(type) {
	case backend.Table:
		return tables
	case backend.Member, backend.Pair, backend.PodAddr, backend.PodMAC, backend.Stray:
		return members
	case backend.PodPort:
		return podPorts
	case backend.Accept:
		return accepts
	case backend.VXLAN:
		return devices
	case backend.Bridge:
		return bridges
	case backend.Port:
		return ports
	case backend.Sysctl:
		return sysctls
	case backend.Addr:
		return addrs
	case backend.FDB:
		return fdbs
	case backend.Neigh:
		return neighs
	case backend.Nexthop:
		return nexthops
	}
	return routes
}

// stage gives a change its place: devices that go, then what is made or altered from tables to accepts, then what goes
// the other way.
func stage(c backend.Change) int {
	switch k := kind(c.Row()); {
	case c.New == nil && (k == devices || k == bridges):
		return 0
	case c.New == nil:
		return 200 - k
	default:
		return 100 + k
	}
}

func TestDiffMakesBeforeItBreaks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawState(t, "want"), drawState(t, "have")
		changes := backend.Diff(want, have)
		if !slices.IsSortedFunc(changes, func(a, b backend.Change) int { return stage(a) - stage(b) }) {
			t.Fatalf("devices that go, makes, and removals are mixed or out of order:\n%s", diffText(changes))
		}
		for _, c := range changes {
			if c.New == nil && (kind(c.Old) == sysctls || kind(c.Old) == ports) {
				t.Fatalf("a knob cannot be removed, and a pod's link is the plugin's: %s", c)
			}
		}
		if again := backend.Diff(want, have); diffText(again) != diffText(changes) {
			t.Fatalf("once:\n%s\nand again:\n%s", diffText(changes), diffText(again))
		}
	})
}

func TestDiffTellsTheStory(t *testing.T) {
	full := three(t)
	planned := func(change func(*subnet.Snapshot)) backend.State {
		s := full
		s.Leases = slices.Clone(full.Leases)
		change(&s)
		return backend.Plan(host(), s)
	}
	same := planned(func(*subnet.Snapshot) {})
	without8 := planned(func(s *subnet.Snapshot) { s.Leases = slices.Delete(s.Leases, 1, 2) })
	for _, c := range []struct {
		claim      string
		want, have backend.State
		text       string
	}{
		{"nothing to do", same, same, ""},
		{"nothing on both sides", backend.State{}, backend.State{}, ""},
		{"a peer comes", same, without8, `+ element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }
+ element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }
+ 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
+ 10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
+ nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
+ 10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
`},
		{"a peer goes", without8, same, `- 10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
- nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
- 10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
- 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
- element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }
- element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }
`},
		{"a peer moves", planned(func(s *subnet.Snapshot) { s.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.88") }), same,
			`+ element inet overlayd hosts4 { 192.0.2.88 . 192.0.2.88/32 }
~ element inet overlayd subnets4 { 192.0.2.88 . 10.5.35.0/24 } (was element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 })
~ 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.88 self permanent (was 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent)
- element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }
`},
		{"a peer is installed anew", planned(func(s *subnet.Snapshot) { s.Leases[1].MAC[1] = 0x2f }), same, `+ 5e:2f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
~ 10.5.35.0 dev overlay.1 lladdr 5e:2f:00:00:00:08 PERMANENT (was 10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT)
- 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
`},
		{"a peer becomes a neighbour on our link", planned(func(s *subnet.Snapshot) { s.Config = parse(t, direct) }), same,
			`~ 10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd (was 10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd)
- nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
- 10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
- 5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
`},
		{"a stray device goes first", backend.NewState(backend.VXLAN{Name: "overlay.1", VNI: 7}), backend.NewState(backend.VXLAN{Name: "old.7", VNI: 7}),
			`- old.7: <DOWN> mtu 0 lladdr 00:00:00:00:00:00 vxlan id 7 local invalid IP dev  dstport 0 nolearning
+ overlay.1: <DOWN> mtu 0 lladdr 00:00:00:00:00:00 vxlan id 7 local invalid IP dev  dstport 0 nolearning
`},
	} {
		t.Run(c.claim, func(t *testing.T) { checkText(t, diffText(backend.Diff(c.want, c.have)), c.text) })
	}
}

func TestStateHoldsOneRowForAKey(t *testing.T) {
	peer, moved := netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("192.0.2.88")
	s := backend.NewState(backend.FDB{Dev: "overlay.1", MAC: subnet.MAC{2}, Dst: peer})
	s.Add(backend.FDB{Dev: "overlay.1", MAC: subnet.MAC{2}, Dst: moved}, backend.FDB{Dev: "overlay.1", MAC: subnet.MAC{4}, Dst: peer})
	checkText(t, s.String(), "02:00:00:00:00:00 dev overlay.1 dst 192.0.2.88 self permanent\n04:00:00:00:00:00 dev overlay.1 dst 192.0.2.8 self permanent\n")
}
