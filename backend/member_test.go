package backend

import (
	"net/netip"
	"testing"
)

// TestAnotherPoolTakesThePlaceOfTheOldOneAtOnce: removed first and added later, pods' packets would be masqueraded in between.
func TestAnotherPoolTakesThePlaceOfTheOldOneAtOnce(t *testing.T) {
	state := func(pool, own string) State {
		return NewState(Member{SetPool, netip.MustParsePrefix(pool)}, Member{SetOwn, netip.MustParsePrefix(own)}, Member{SetPool, netip.MustParsePrefix("fd00:5::/48")})
	}
	changes := Diff(state("10.4.0.0/15", "10.5.35.0/24"), state("10.5.0.0/16", "10.5.34.0/24"))
	for _, c := range changes {
		if c.Old == nil || c.New == nil {
			t.Errorf("%s: want it altered", c)
		}
	}
	if len(changes) != 2 {
		t.Errorf("%v: want the pool and our part of it altered, and IPv6's left alone", changes)
	}
}
