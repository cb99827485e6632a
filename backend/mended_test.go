package backend_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/subnet"
)

// entry finds the row of that text.
func entry(t *testing.T, s backend.State, text string) backend.Entry {
	t.Helper()
	for _, row := range s {
		if row.String() == text {
			return row
		}
	}
	t.Fatalf("no row %s in\n%s", text, s)
	return nil
}

const (
	stray  = "02:00:00:00:00:99 dev overlay.1 dst 192.0.2.99 self permanent"
	pair8  = "element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }"
	neigh8 = "10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT"
)

func strayFDB() backend.Entry {
	return backend.FDB{Dev: "overlay.1", MAC: subnet.MAC{2, 5: 0x99}, Dst: netip.MustParseAddr("192.0.2.99")}
}

// happening changes a settled loop's world, by another hand or not.
type happening struct {
	claim string
	act   func(*testing.T, *loop, *backendtest.Fake)
	want  string // mended, in order
}

func happenings(t *testing.T) []happening {
	return []happening{
		{"nothing happened", func(*testing.T, *loop, *backendtest.Fake) {}, ""},
		{"a row deleted by hand", func(t *testing.T, _ *loop, k *backendtest.Fake) { k.Lose(route8(t)) }, "+ " + route8(t).String() + "\n"},
		{"an element deleted by hand", func(t *testing.T, _ *loop, k *backendtest.Fake) { k.Lose(entry(t, k.State(), pair8)) }, "+ " + pair8 + "\n"},
		{"a row altered by hand", func(_ *testing.T, _ *loop, k *backendtest.Fake) {
			k.Plant(backend.Neigh{Dev: "overlay.1", IP: netip.MustParseAddr("10.5.35.0"), MAC: subnet.MAC{2, 5: 0x66}})
		}, "~ " + neigh8 + " (was 10.5.35.0 dev overlay.1 lladdr 02:00:00:00:00:66 PERMANENT)\n"},
		{"a knob turned by hand", func(_ *testing.T, _ *loop, k *backendtest.Fake) {
			k.Plant(backend.Sysctl{Name: "net/ipv4/ip_forward", Value: "0"})
		}, "~ net/ipv4/ip_forward = 1 (was net/ipv4/ip_forward = 0)\n"},
		{"a table broken by hand", func(_ *testing.T, _ *loop, k *backendtest.Fake) {
			k.Plant(backend.Table{Family: backend.FamilyInet, Filter: backend.Filter{Bits4: 24}, Broken: "chain guard is missing"})
		}, "~ table inet overlayd for " + filterOfThree + " (was table inet overlayd for bridge none vni 0 port 0 subnets 24/0 outer 4 guard  masquerade no antispoof no, but chain guard is missing)\n"},
		{"a foreign row added", func(_ *testing.T, _ *loop, k *backendtest.Fake) { k.Plant(strayFDB()) }, "- " + stray + "\n"},
		{"a device deleted by hand, with all that was on it", func(t *testing.T, _ *loop, k *backendtest.Fake) {
			k.Lose(backend.Bridge{Name: "ovl0", MAC: subnet.AddrMAC(netip.MustParseAddr("10.5.34.1")), MTU: 1450, Up: true})
		}, "+ ovl0: <UP> mtu 1450 lladdr 0a:58:0a:05:22:01 bridge\n+ inet 10.5.34.1/24 dev ovl0\n"},
		{"a peer leaves", func(t *testing.T, l *loop, _ *backendtest.Fake) {
			s := three(t)
			s.Leases = s.Leases[:2]
			l.Want(s)
		}, ""},
		{"a peer comes", func(t *testing.T, l *loop, _ *backendtest.Fake) {
			s := three(t)
			s.Leases = append(s.Leases, lease("h5", "192.0.2.5", "10.5.100.0/24"))
			l.Want(s)
		}, ""},
		{"a peer moves", func(t *testing.T, l *loop, _ *backendtest.Fake) {
			s := three(t)
			s.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.88")
			l.Want(s)
		}, ""},
		{"a peer moves while a foreign row is there", func(t *testing.T, l *loop, k *backendtest.Fake) {
			s := three(t)
			s.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.88")
			k.Plant(strayFDB())
			l.Want(s)
		}, "- " + stray + "\n"},
		{"a peer moves and its row is deleted by hand", func(t *testing.T, l *loop, k *backendtest.Fake) {
			s := three(t)
			s.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.88")
			k.Lose(entry(t, k.State(), pair8))
			l.Want(s)
		}, "+ element inet overlayd subnets4 { 192.0.2.88 . 10.5.35.0/24 }\n"},
		{"another VNI: the device is made anew, and its rows again", func(t *testing.T, l *loop, _ *backendtest.Fake) {
			s := three(t)
			s.Config.Backend.VNI = 7
			l.Want(s)
		}, ""},
		{"the uplink's MTU", func(_ *testing.T, _ *loop, k *backendtest.Fake) {
			h := host()
			h.Uplink.MTU = 9000
			k.Become(h)
		}, ""},
		{"a chain that drops what is forwarded", func(_ *testing.T, _ *loop, k *backendtest.Fake) {
			h := host()
			h.Drops = []backend.Chain{{Family: "ip", Table: "filter", Name: "FORWARD"}}
			k.Become(h)
		}, ""},
	}
}

// TestMendedIsWhatAnotherHandDid, and nothing else that the loop makes.
func TestMendedIsWhatAnotherHandDid(t *testing.T) {
	for _, c := range happenings(t) {
		t.Run(c.claim, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, k := settled(t)
				before := len(l.passes())
				c.act(t, l, k)
				l.Kick()
				advance(3 * pace.Min)
				var mended []backend.Change
				for _, p := range l.passes()[before:] {
					mended = append(mended, p.Mended...)
				}
				checkText(t, diffText(mended), c.want)
				if !l.Status().Synced {
					t.Errorf("not synced: %+v", l.Status())
				}
			})
		})
	}
}

const filterOfThree = "bridge ovl0 vni 1 port 8472 subnets 24/0 outer 4 guard full masquerade yes antispoof yes"

func TestPodsComingAndGoingAreNotMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		h, pods := host(), []backend.Pod{pod("veth1", subnet.MAC{2}, "10.5.34.8"), pod("veth2", subnet.MAC{4}, "10.5.34.9")}
		for _, n := range []int{1, 2, 1, 0} {
			h.Pods = pods[:n]
			k.Become(h)
			if n < 2 { // with its link a pod's port goes
				k.Lose(backend.Port{Link: "veth2", Bridge: "ovl0"})
			}
			l.Kick()
			advance(pace.Min)
			if !l.Status().Synced || len(l.last().Made) == 0 {
				t.Errorf("%d pods: %+v", n, l.last())
			}
			checkText(t, diffText(l.last().Mended), "")
		}
		h.Pods = pods[:1]
		k.Become(h)
		l.Kick()
		advance(pace.Min)
		k.Lose(backend.PodPort{Link: "veth1"})
		l.Kick()
		advance(pace.Min)
		checkText(t, diffText(l.last().Mended), "+ element bridge overlayd ports { veth1 }\n")
	})
}

// What was there before the daemon, or has never been right, nobody's hand has changed.
func TestAStartMendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := backendtest.NewFake(host())
		k.Plant(backend.Plan(host(), three(t)).Entries()...)
		k.Plant(strayFDB())
		k.Lose(route8(t))
		k.Refuse(route8(t), errRefused)
		l := start(t, k)
		l.Want(three(t))
		advance(0)
		checkText(t, diffText(l.last().Made), "- "+stray+"\n")
		checkText(t, diffText(l.last().Mended), "")
		k.Refuse(route8(t), nil)
		advance(pace.Retry)
		checkText(t, diffText(l.last().Made), "+ "+route8(t).String()+"\n")
		checkText(t, diffText(l.last().Mended), "")
	})
}

// A row that comes and goes with the same hand is mended each time.
func TestEachActIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		for range 3 {
			k.Lose(route8(t))
			l.Kick()
			advance(pace.Min)
			checkText(t, diffText(l.last().Mended), "+ "+route8(t).String()+"\n")
		}
	})
}
