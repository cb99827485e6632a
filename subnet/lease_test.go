package subnet_test

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

func TestLeaseOfANode(t *testing.T) {
	s := subnet.Snapshot{Leases: []subnet.Lease{lease("h1", 1, "10.5.1.0/24"), lease("h2", 2, "10.5.2.0/24")}}
	if l, ok := s.Lease("h2"); !ok || l != s.Leases[1] {
		t.Errorf("h2: got %s, %t, want %s", l, ok, s.Leases[1])
	}
	if l, ok := s.Lease("h3"); ok || l != (subnet.Lease{}) {
		t.Errorf("h3: got %s, %t, want none", l, ok)
	}
}

func TestOverlappingNamesWhatIsInTheWay(t *testing.T) {
	s := subnet.Snapshot{
		Config: subnet.Config{IPv4: subnet.Pool{Network: netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24}},
		Leases: []subnet.Lease{lease("h1", 1, "10.5.1.0/24"), lease("h2", 2, "10.5.2.0/24", "fd00:5:0:2::/64"), lease("", 3, "10.5.3.0/24")},
		Skipped: []subnet.Skipped{
			{Key: "10.5.8.0-23", Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.8.0/23")}},
			{Key: "junk"},
			{Key: "0.0.0.0-0", Subnets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
		},
	}
	for _, c := range []struct {
		claim   string
		subnets []string
		want    string // empty: nothing
	}{
		{"nothing asked for", nil, ""},
		{"a free one", []string{"10.5.7.0/24"}, ""},
		{"a lease", []string{"10.5.1.0/24"}, "the lease 10.5.1.0/24 of h1 via 192.0.2.1"},
		{"part of a lease", []string{"10.5.1.64/26"}, "the lease 10.5.1.0/24 of h1 via 192.0.2.1"},
		{"more than a lease", []string{"10.5.0.0/23"}, "the lease 10.5.1.0/24 of h1 via 192.0.2.1"},
		{"the second family", []string{"10.5.7.0/24", "fd00:5:0:2::/64"}, "the lease 10.5.2.0/24 fd00:5:0:2::/64 of h2 via 192.0.2.2"},
		{"a lease without a name", []string{"10.5.3.0/24"}, "the lease 10.5.3.0/24 of 192.0.2.3 via 192.0.2.3"},
		{"what cannot be read", []string{"10.5.9.0/24"}, "the record 10.5.8.0-23"},
		{"what covers all of the pool cannot be a host's", []string{"10.5.12.0/24"}, ""},
	} {
		t.Run(c.claim, func(t *testing.T) {
			var subnets []netip.Prefix
			for _, text := range c.subnets {
				subnets = append(subnets, netip.MustParsePrefix(text))
			}
			got, found := s.Overlapping(subnets...)
			if got != c.want || found != (c.want != "") {
				t.Errorf("%v\n got %q, %t\nwant %q", c.subnets, got, found, c.want)
			}
		})
	}
}

func TestWithMakesTheClaimTheNodesLease(t *testing.T) {
	claim := lease("h1", 1, "10.5.1.0/24", "fd00:5:0:1::/64")
	h2 := lease("h2", 2, "10.5.2.0/24")
	sameMAC := lease("h9", 9, "10.5.9.0/24")
	sameMAC.MAC = claim.MAC
	const own = "10.5.1.0/24 fd00:5:0:1::/64 of h1 via 192.0.2.1\n"
	const other = "10.5.2.0/24 of h2 via 192.0.2.2\n"
	for _, c := range []struct {
		claim  string
		listed []subnet.Lease
		want   string
	}{
		{"the list is empty", nil, own},
		{"the list has it too", []subnet.Lease{claim, h2}, own + other},
		{"the list is older than the claim", []subnet.Lease{h2}, own + other},
		{"the list has another lease of the node", []subnet.Lease{h2, lease("h1", 8, "10.5.9.0/24")}, own + other},
		{"a stranger has the subnet", []subnet.Lease{lease("h9", 9, "10.5.1.0/24"), h2}, own + other},
		{"a stranger has part of it", []subnet.Lease{lease("h9", 9, "10.5.1.128/25"), h2}, own + other},
		{"a stranger has it and more", []subnet.Lease{lease("h9", 9, "10.5.0.0/20")}, own},
		{"a stranger has the IPv6 subnet", []subnet.Lease{lease("h9", 9, "10.5.9.0/24", "fd00:5:0:1::/64"), h2}, own + other},
		{"a stranger has the public address", []subnet.Lease{h2, lease("h9", 1, "10.5.9.0/24")}, own + other},
		{"a stranger has the MAC", []subnet.Lease{sameMAC, h2}, own + other},
		{"hosts without a name are not the node", []subnet.Lease{lease("", 3, "10.5.3.0/24")}, own + "10.5.3.0/24 of 192.0.2.3 via 192.0.2.3\n"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			before := subnet.Snapshot{Revision: 7, Config: parse(t, dualStack), Leases: c.listed}
			untouched := verdict(before)
			after := before.With(claim)
			if got := verdict(after); got != c.want {
				t.Errorf("\n got:\n%s\nwant:\n%s", got, c.want)
			}
			if l, ok := after.Lease("h1"); !ok || l != claim {
				t.Errorf("the lease of h1: got %s, %t, want %s", l, ok, claim)
			}
			if got := verdict(before); got != untouched {
				t.Errorf("the snapshot it was made from\n got:\n%s\nwant:\n%s", got, untouched)
			}
			if after.Revision != before.Revision || after.Config != before.Config {
				t.Errorf("revision %d and config changed", after.Revision)
			}
		})
	}
}
