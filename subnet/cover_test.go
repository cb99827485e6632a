package subnet_test

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

// TestARecordOfAllOfThePoolKeepsNobodyOut: whoever can write one key must not keep every host from joining.
func TestARecordOfAllOfThePoolKeepsNobodyOut(t *testing.T) {
	c, err := subnet.ParseConfig([]byte(`{"Network": "10.5.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, covered := range []string{"0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "10.5.0.0/16"} {
		p := netip.MustParsePrefix(covered)
		s := subnet.Vet(1, c, []subnet.Lease{lease("h1", 1, covered)}, nil, []subnet.Skipped{{Key: "unreadable", Reason: subnet.ReasonValue, Subnets: []netip.Prefix{p}}})
		if len(s.Skipped) != 2 {
			t.Errorf("%s: skipped are %v, want both records", covered, s.Skipped)
		}
		l, err := s.Pick("h2")
		if err != nil {
			t.Errorf("%s: %v", covered, err)
			continue
		}
		if what, taken := s.Overlapping(l.Subnet); taken {
			t.Errorf("%s: %s is covered by %s", covered, l.Subnet, what)
		}
	}
	half := subnet.Vet(1, c, nil, nil, []subnet.Skipped{{Key: "unreadable", Reason: subnet.ReasonValue, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/17")}}})
	l, err := half.Pick("h2")
	if err != nil || half.Skipped[0].Subnets[0].Overlaps(l.Subnet) {
		t.Errorf("%s, %v: want one outside of what cannot be read", l.Subnet, err)
	}
}
