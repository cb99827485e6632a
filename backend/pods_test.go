package backend_test

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/subnet"
)

func pod(link string, mac subnet.MAC, addrs ...string) backend.Pod {
	p := backend.Pod{Link: link, MAC: mac, Alias: "overlay/" + link + "/eth0"}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	return p
}

// ofPods returns the rows of a plan that say what pods may send.
func ofPods(s backend.State) string {
	var b strings.Builder
	for _, e := range s.Entries() {
		switch e.(type) {
		case backend.PodAddr, backend.PodMAC, backend.PodPort:
			b.WriteString(strings.TrimPrefix(e.String(), "element bridge overlayd ") + "\n")
		}
	}
	return b.String()
}

func TestPlanOfPods(t *testing.T) {
	live, other := subnet.MAC{2, 1, 2, 3, 4, 5}, subnet.MAC{2, 9, 9, 9, 9, 9}
	bridge := subnet.AddrMAC(netip.MustParseAddr("10.5.34.1"))
	derived := subnet.AddrMAC(netip.MustParseAddr("10.5.34.8"))
	one := func(mac subnet.MAC) string {
		return "macs { veth1 . " + mac.String() + " }\npods4 { veth1 . " + mac.String() + " . 10.5.34.8 }\n"
	}
	two := func(mac subnet.MAC) string {
		return "macs { veth2 . " + mac.String() + " }\npods4 { veth2 . " + mac.String() + " . 10.5.34.9 }\n"
	}
	both := func(a, b string) string {
		lines := strings.SplitAfter(a, "\n")
		others := strings.SplitAfter(b, "\n")
		return lines[0] + others[0] + lines[1] + others[1] + "ports { veth1 }\nports { veth2 }\n"
	}
	derived2 := subnet.AddrMAC(netip.MustParseAddr("10.5.34.9"))
	for _, c := range []struct {
		claim string
		pods  []backend.Pod
		want  string
	}{
		{"none", nil, ""},
		{"with the MAC that it has", []backend.Pod{pod("veth1", live, "10.5.34.8")}, one(live) + "ports { veth1 }\n"},
		{"with the MAC that the plugin gives, when it cannot be seen", []backend.Pod{pod("veth1", subnet.MAC{}, "10.5.34.8")}, one(derived) + "ports { veth1 }\n"},
		{"with its own MAC, when it took the bridge's", []backend.Pod{pod("veth1", bridge, "10.5.34.8")}, one(derived) + "ports { veth1 }\n"},
		{"one with two links has both addresses on each", []backend.Pod{pod("veth1", live, "10.5.34.8"), {Link: "veth2", MAC: other, Alias: "second/veth1/eth1 ns/pod", Addrs: []netip.Addr{netip.MustParseAddr("10.5.34.9")}}},
			"macs { veth1 . " + live.String() + " }\nmacs { veth2 . " + other.String() + " }\n" +
				"pods4 { veth1 . " + live.String() + " . 10.5.34.8 }\npods4 { veth1 . " + live.String() + " . 10.5.34.9 }\n" +
				"pods4 { veth2 . " + other.String() + " . 10.5.34.8 }\npods4 { veth2 . " + other.String() + " . 10.5.34.9 }\nports { veth1 }\nports { veth2 }\n"},
		{"two whose ADD is under way have nothing in common", []backend.Pod{{Link: "veth1", MAC: live, Addrs: []netip.Addr{netip.MustParseAddr("10.5.34.8")}}, {Link: "veth2", MAC: other, Addrs: []netip.Addr{netip.MustParseAddr("10.5.34.9")}}},
			both(one(live), two(other))},
		{"two with MACs of their own", []backend.Pod{pod("veth1", live, "10.5.34.8"), pod("veth2", other, "10.5.34.9")}, both(one(live), two(other))},
		{"each with its own MAC, when both have the same", []backend.Pod{pod("veth1", live, "10.5.34.8"), pod("veth2", live, "10.5.34.9")},
			both(one(derived), two(derived2))},
		{"with its own MAC, when it took the one that another was given", []backend.Pod{pod("veth1", derived, "10.5.34.8"), pod("veth2", derived, "10.5.34.9")},
			both(one(derived), two(derived2))},
		{"with its own MAC, when it took the one of another that cannot be seen", []backend.Pod{pod("veth1", subnet.MAC{}, "10.5.34.8"), pod("veth2", derived, "10.5.34.9")},
			both(one(derived), two(derived2))},
		{"with its own MAC, when it took the one that another has given up", []backend.Pod{pod("veth1", live, "10.5.34.8"), pod("veth2", derived, "10.5.34.9")},
			both(one(live), two(derived2))},
		{"of both families: what it may advertise", []backend.Pod{pod("veth1", live, "10.5.34.8", "fd00:5:0:22::8")},
			"macs { veth1 . 02:01:02:03:04:05 }\npods4 { veth1 . 02:01:02:03:04:05 . 10.5.34.8 }\npods6 { veth1 . 02:01:02:03:04:05 . fd00:5:0:22::8 }\n" +
				"targets6 { veth1 . 02:01:02:03:04:05 . fd00:5:0:22::8 }\nports { veth1 }\n"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h := host()
			h.Pods = c.pods
			checkText(t, ofPods(backend.Plan(h, three(t))), c.want)
			h.AntiSpoof = false
			checkText(t, ofPods(backend.Plan(h, three(t))), "")
		})
	}
}

// TestNoTwoPodsMaySendWithOneMAC, nor one with the bridge's: frames for the other would come to it.
func TestNoTwoPodsMaySendWithOneMAC(t *testing.T) {
	s := three(t)
	rapid.Check(t, func(t *rapid.T) {
		h := host()
		macs := []subnet.MAC{{}, {2}, subnet.AddrMAC(netip.MustParseAddr("10.5.34.1"))}
		n := rapid.IntRange(1, 4).Draw(t, "pods")
		for i := range n {
			macs = append(macs, subnet.AddrMAC(netip.AddrFrom4([4]byte{10, 5, 34, byte(i + 8)})))
		}
		for i := range n {
			h.Pods = append(h.Pods, pod("veth"+string(rune('1'+i)), rapid.SampledFrom(macs).Draw(t, "MAC"), netip.AddrFrom4([4]byte{10, 5, 34, byte(i + 8)}).String()))
		}
		may := map[subnet.MAC]string{macs[2]: "the bridge"}
		for _, e := range backend.Plan(h, s).Entries() {
			p, ok := e.(backend.PodMAC)
			if !ok {
				continue
			}
			if whose, taken := may[p.MAC]; taken {
				t.Fatalf("%+v\n%s has the MAC of %s", h.Pods, p.Link, whose)
			}
			may[p.MAC] = p.Link
		}
	})
}

// A port is listed after what it may send: until then it passes, and never does it stand without.
func TestAPodsPortIsListedLastAndGoesFirst(t *testing.T) {
	h := host()
	without := backend.Plan(h, three(t))
	h.Pods = []backend.Pod{pod("veth1", subnet.MAC{2}, "10.5.34.8")}
	with := backend.Plan(h, three(t))
	checkText(t, diffText(backend.Diff(with, without)), `+ element bridge overlayd macs { veth1 . 02:00:00:00:00:00 }
+ element bridge overlayd pods4 { veth1 . 02:00:00:00:00:00 . 10.5.34.8 }
+ element bridge overlayd ports { veth1 }
+ veth1 master ovl0 hairpin on
`)
	checkText(t, diffText(backend.Diff(without, with)), `- element bridge overlayd ports { veth1 }
- element bridge overlayd pods4 { veth1 . 02:00:00:00:00:00 . 10.5.34.8 }
- element bridge overlayd macs { veth1 . 02:00:00:00:00:00 }
`)
	k := backendtest.NewFake(h)
	k.Plant(with.Entries()...)
	if _, err := backend.Remove(k); err != nil {
		t.Fatal(err)
	}
	checkText(t, ofFilter(k.State()), "")
}
