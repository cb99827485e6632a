package subnet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func picked(s subnet.Snapshot, node string) string {
	l, err := s.Pick(node)
	if err != nil {
		return err.Error()
	}
	return l.String()
}

// four is a pool with the subnets 10.5.0.64/26, 10.5.0.128/26 and 10.5.0.192/26.
const four = `{"Network": "10.5.0.0/24", "SubnetLen": 26}`

func TestPickPrefersOwnThenNewThenLongUnused(t *testing.T) {
	held := func(rank int64, node, text string) subnet.Held {
		return subnet.Held{Subnet: prefix(text), Node: node, Rank: rank}
	}
	bad := func(text string) subnet.Skipped {
		return subnet.Skipped{Key: text, Subnets: []netip.Prefix{prefix(text)}}
	}
	for _, c := range []struct {
		claim    string
		snapshot subnet.Snapshot
		want     string
	}{
		{"the live lease, whatever the history", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h1", 1, "10.5.0.128/26")},
			Held:   []subnet.Held{held(9, "h1", "10.5.0.64/26")},
		}, "10.5.0.128/26"},
		{"the live lease of a former length", subnet.Snapshot{Leases: []subnet.Lease{lease("h1", 1, "10.5.0.32/27")}}, "10.5.0.32/27"},
		{"the one held last, before one never used", subnet.Snapshot{
			Held: []subnet.Held{held(3, "h1", "10.5.0.64/26"), held(5, "h1", "10.5.0.192/26"), held(4, "h1", "10.5.0.128/26")},
		}, "10.5.0.192/26"},
		{"the one held before, if the last is another's", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h2", 2, "10.5.0.192/26")},
			Held:   []subnet.Held{held(3, "h1", "10.5.0.64/26"), held(5, "h1", "10.5.0.192/26")},
		}, "10.5.0.64/26"},
		{"the one held before, if the last is unreadable", subnet.Snapshot{
			Skipped: []subnet.Skipped{bad("10.5.0.200/30")},
			Held:    []subnet.Held{held(3, "h1", "10.5.0.64/26"), held(5, "h1", "10.5.0.192/26")},
		}, "10.5.0.64/26"},
		{"none of its own below the lowest", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h2", 2, "10.5.0.64/26"), lease("h3", 3, "10.5.0.192/26")},
			Held:   []subnet.Held{held(3, "h1", "10.5.0.0/26")},
		}, "10.5.0.128/26"},
		{"the only one never used", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h2", 2, "10.5.0.192/26")},
			Held:   []subnet.Held{held(1, "h3", "10.5.0.64/26")},
		}, "10.5.0.128/26"},
		{"the one unused for longest, when all were used", subnet.Snapshot{
			Held: []subnet.Held{held(7, "h3", "10.5.0.64/26"), held(5, "h4", "10.5.0.192/26"), held(6, "h5", "10.5.0.128/26")},
		}, "10.5.0.192/26"},
		{"the next, when that one is another's again", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h4", 4, "10.5.0.192/26")},
			Held:   []subnet.Held{held(7, "h3", "10.5.0.64/26"), held(5, "h4", "10.5.0.192/26"), held(6, "h5", "10.5.0.128/26")},
		}, "10.5.0.128/26"},
		{"one whose part was used at a former length, last of all", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h2", 2, "10.5.0.64/26"), lease("h3", 3, "10.5.0.128/26")},
			Held:   []subnet.Held{held(3, "h4", "10.5.0.192/27")},
		}, "10.5.0.192/26"},
		{"one of the rest, when others' lengths differ", subnet.Snapshot{
			Leases: []subnet.Lease{lease("h2", 2, "10.5.0.0/25")},
			Held:   []subnet.Held{held(3, "h4", "10.5.0.128/26")},
		}, "10.5.0.192/26"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := c.snapshot
			s.Config = parse(t, four)
			l, err := s.Pick("h1")
			if want := (subnet.Lease{Node: "h1", Subnet: prefix(c.want)}); err != nil || l != want {
				t.Errorf("\n got %+v (%v)\nwant %+v", l, err, want)
			}
		})
	}
}

func TestPickGoesOnFromWhereTheNameSays(t *testing.T) {
	s := subnet.Snapshot{Config: parse(t, `{"Network": "10.5.0.0/16"}`)}
	pool := s.Config.IPv4
	start, err := s.Pick("h1")
	if err != nil {
		t.Fatal(err)
	}
	index, _ := pool.Index(start.Subnet)
	for n := range byte(255) {
		l, err := s.Pick("h1")
		if want := pool.At((index-1+uint64(n))%255 + 1); err != nil || l.Subnet != want {
			t.Fatalf("after %d others\n got %s (%v)\nwant %s", n, l.Subnet, err, want)
		}
		s.Leases = append(s.Leases, lease(fmt.Sprintf("other%d", n), n, l.Subnet.String()))
	}
	if got := picked(s, "h1"); !strings.HasPrefix(got, "no free subnet") {
		t.Errorf("after 255 others: got %s, want no free subnet", got)
	}
}

// Joiners that all begin at the first subnet would race for it.
func TestPickSpreadsJoiners(t *testing.T) {
	s := subnet.Snapshot{Config: parse(t, `{"Network": "10.0.0.0/8"}`)}
	places := map[netip.Prefix]bool{}
	for n := range 100 {
		l, err := s.Pick(fmt.Sprintf("node%d", n))
		if err != nil {
			t.Fatal(err)
		}
		places[l.Subnet] = true
	}
	if len(places) < 95 {
		t.Errorf("100 joiners go for %d subnets of 65535, want nearly 100", len(places))
	}
}

func TestPickChoosesForEachFamily(t *testing.T) {
	const small = `{"Network": "10.5.0.0/24", "SubnetLen": 26, "EnableIPv6": true, "IPv6Network": "fd00:5::/62"}`
	s := subnet.Snapshot{
		Config: parse(t, small),
		Leases: []subnet.Lease{
			lease("h1", 1, "10.5.0.128/26"), // it joined when the network had IPv4 alone
			lease("h2", 2, "10.5.0.64/26", "fd00:5:0:1::/64"),
			lease("h3", 3, "fd00:5:0:3::/64"),
		},
	}
	for _, c := range []struct{ node, want string }{
		{"h1", "10.5.0.128/26 fd00:5:0:2::/64 of h1 via invalid IP"},
		{"h2", "10.5.0.64/26 fd00:5:0:1::/64 of h2 via invalid IP"},
		{"h9", "10.5.0.192/26 fd00:5:0:2::/64 of h9 via invalid IP"},
	} {
		if got := picked(s, c.node); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.node, got, c.want)
		}
	}
}

func TestPickSaysHowTheSpaceRanOut(t *testing.T) {
	s := subnet.Snapshot{
		Config: parse(t, four),
		Leases: []subnet.Lease{lease("h2", 2, "10.5.0.64/26"), lease("h3", 3, "10.5.0.128/28")},
		Skipped: []subnet.Skipped{
			{Key: "a", Subnets: []netip.Prefix{prefix("10.5.0.224/30")}}, {Key: "b"}, {Key: "c", Subnets: []netip.Prefix{prefix("10.6.0.0/16")}},
		},
		Held: []subnet.Held{{Subnet: prefix("10.5.0.192/26"), Node: "h1", Rank: 1}},
	}
	l, err := s.Pick("h1")
	const want = "no free subnet: all 3 subnets /26 of 10.5.0.0/24 from 10.5.0.64 to 10.5.0.192 are taken (2 leases, 0 reservations, 3 unreadable records): " +
		"release one or enlarge the pool"
	if !errors.Is(err, subnet.ErrNoSpace) || err.Error() != want || l != (subnet.Lease{}) {
		t.Errorf("\n got %v (%+v)\nwant %s", err, l, want)
	}
}
