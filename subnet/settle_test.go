package subnet_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/subnet"
)

const grace = 5 * time.Minute

// start is any moment: only differences count.
var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// network is a snapshot in which the hosts of the given numbers have a lease.
func network(t testing.TB, revision int64, hosts ...int) subnet.Snapshot {
	var leases []subnet.Lease
	for _, i := range hosts {
		leases = append(leases, lease(fmt.Sprintf("h%d", i), byte(i), fmt.Sprintf("10.5.%d.0/24", i)))
	}
	return subnet.Vet(revision, parse(t, `{"Network": "10.5.0.0/16"}`), leases, nil, nil)
}

// believed shows whose leases count, and in brackets those that only are still believed.
func believed(s subnet.Snapshot) string {
	var names []string
	for _, l := range s.Leases {
		name := l.Owner()
		if slices.ContainsFunc(s.Missing, func(m subnet.Missing) bool { return m.Lease == l }) {
			name = "(" + name + ")"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestSettle(t *testing.T) {
	six := func() subnet.Snapshot { return network(t, 10, 1, 2, 3, 4, 5, 6) }
	released := network(t, 11, 1, 2)
	for i := 3; i <= 6; i++ {
		released.Held = append(released.Held, subnet.Held{
			Subnet: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", i)), Node: fmt.Sprintf("h%d", i), Released: i != 4,
		})
	}
	doubted := network(t, 11, 1, 2, 3, 4, 5)
	doubted.Doubt = true
	unreadable := network(t, 11, 1, 2, 3, 4, 5)
	unreadable.Skipped = []subnet.Skipped{{Key: "10.5.6.0-24", Reason: subnet.ReasonValue, Subnets: lease("h6", 6, "10.5.6.0/24").Subnets()}}
	newcomer := network(t, 12, 1, 2)
	newcomer.Leases = append(newcomer.Leases, lease("new", 9, "10.5.3.0/24"))
	for _, c := range []struct {
		name  string
		next  []subnet.Snapshot // heard a minute after one another
		want  string
		after time.Duration // before the last one, on top
	}{
		{"a few go at once", []subnet.Snapshot{network(t, 11, 1, 2, 3)}, "h1 h2 h3", 0},
		{"most stay for a while", []subnet.Snapshot{network(t, 11, 1, 2)}, "h1 h2 (h3) (h4) (h5) (h6)", 0},
		{"all stay for a while", []subnet.Snapshot{network(t, 11)}, "(h1) (h2) (h3) (h4) (h5) (h6)", 0},
		{"who comes back is back", []subnet.Snapshot{network(t, 11, 1, 2), network(t, 12, 1, 2, 4)}, "h1 h2 h4 (h3) (h5) (h6)", 0},
		{"the time begins with the disappearance", []subnet.Snapshot{network(t, 11, 1, 2), network(t, 12, 1, 2)}, "h1 h2 (h3) (h4) (h5) (h6)", grace - 2*time.Minute},
		{"and is over some time", []subnet.Snapshot{network(t, 11, 1, 2), network(t, 12, 1, 2)}, "h1 h2", grace - time.Minute},
		{"a new lease over a missing one wins", []subnet.Snapshot{network(t, 11, 1, 2), newcomer}, "h1 h2 new (h4) (h5) (h6)", 0},
		{"who left on purpose goes at once", []subnet.Snapshot{released}, "h1 h2", 0},
		{"one goes at once while others are believed", []subnet.Snapshot{network(t, 11, 1, 2), network(t, 12, 1)}, "h1 (h3) (h4) (h5) (h6)", 0},
		{"one that cannot be read any more stays", []subnet.Snapshot{unreadable}, "h1 h2 h3 h4 h5 (h6)", 0},
		{"as long as it cannot be read", []subnet.Snapshot{unreadable, unreadable}, "h1 h2 h3 h4 h5 (h6)", 2 * grace},
		{"nobody goes from a store in doubt", []subnet.Snapshot{doubted}, "h1 h2 h3 h4 h5 (h6)", 0},
		{"nor from one that went back in time", []subnet.Snapshot{network(t, 9, 1, 2, 3, 4, 5)}, "h1 h2 h3 h4 h5 (h6)", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, now := six(), start
			for i, next := range c.next {
				if now = now.Add(time.Minute); i == len(c.next)-1 {
					now = now.Add(c.after)
				}
				s = subnet.Settle(s, next, now, grace)
			}
			if got := believed(s); got != c.want {
				t.Errorf("believed are %s, want %s", got, c.want)
			}
		})
	}
}

// TestSettleKeepsNetworksRight: whatever is heard, what is in the store is believed, nothing is believed twice, and what is
// missing is there for less than the grace time.
func TestSettleKeepsNetworksRight(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		now := start
		var s subnet.Snapshot
		for revision := range rapid.IntRange(1, 8).Draw(r, "snapshots") {
			hosts := rapid.SliceOfNDistinct(rapid.IntRange(1, 12), 0, 12, rapid.ID).Draw(r, "hosts")
			next := network(t, int64(revision+1), hosts...)
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(r, "seconds")) * time.Second)
			s = subnet.Settle(s, next, now, grace)
			for _, l := range next.Leases {
				if !slices.Contains(s.Leases, l) {
					r.Fatalf("%s is in the store and not believed", l)
				}
			}
			if again := subnet.Vet(s.Revision, s.Config, s.Leases, nil, nil); len(again.Skipped) > 0 {
				r.Fatalf("believed are leases that clash: %v", again.Skipped)
			}
			for _, m := range s.Missing {
				if now.Sub(m.Since) >= grace || !slices.Contains(s.Leases, m.Lease) {
					r.Fatalf("%s is missing since %s, it is %s", m.Lease, m.Since, now)
				}
			}
		}
	})
}

func TestAConfigurationIsAdmittedOnlyIfEverybodyCanStay(t *testing.T) {
	three := network(t, 10, 1, 2, 3)
	for config, want := range map[string]string{
		`{"Network": "10.5.0.0/16", "Backend": {"MTU": 1400}}`: "",
		`{"Network": "10.4.0.0/15"}`:                           "",
		`{"Network": "10.77.0.0/16"}`:                          "3 of 3 leases cannot stay: 10.5.1.0/24 is outside the network 10.77.0.0/16",
		`{"Network": "10.5.0.0/23", "SubnetLen": 25}`:          "2 of 3 leases cannot stay: 10.5.2.0/24 is outside",
		`{"Network": "192.0.0.0/16"}`:                          "3 of 3 leases cannot stay",
		`{"Network": "10.5.0.0/16", "Backend": {"VNI": 2}}`:    "VNI 1 and port 8472 cannot become 2 and 8472 while 3 hosts have leases",
	} {
		err := three.Admits(parse(t, config))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
	if err := network(t, 10).Admits(parse(t, `{"Network": "10.77.0.0/16", "Backend": {"VNI": 9}}`)); err != nil {
		t.Errorf("nobody is in the network, and yet: %v", err)
	}
}
