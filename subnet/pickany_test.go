package subnet_test

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/subnet"
)

// drawPrefix makes a prefix in the pool or in as much space beside it: mostly one subnet, also half of one, two, four, the
// pool or more.
func drawPrefix(t *rapid.T, p subnet.Pool) netip.Prefix {
	wide := netip.PrefixFrom(p.Network.Addr(), p.Network.Bits()-1).Masked()
	halves := subnet.Pool{Network: wide, SubnetLen: p.SubnetLen + 1}
	place := halves.At(rapid.Uint64Range(0, 63).Draw(t, "place"))
	shorter := rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, -1, -1, 1, 1, 2, 4, 5}).Draw(t, "shorter")
	return netip.PrefixFrom(place.Addr(), p.SubnetLen-shorter).Masked()
}

// drawSnapshot makes leases, history and unreadable records of mixed lengths. h1, for whom is picked, has no lease.
func drawSnapshot(t *rapid.T, p subnet.Pool) subnet.Snapshot {
	s := subnet.Snapshot{Config: subnet.Config{IPv4: p}}
	if !p.Network.Addr().Is4() {
		s.Config = subnet.Config{IPv6: p}
	}
	for n := range rapid.IntRange(0, 12).Draw(t, "leases") {
		s.Leases = append(s.Leases, lease("other", byte(n), drawPrefix(t, p).String()))
	}
	for range rapid.IntRange(0, 3).Draw(t, "unreadable") {
		s.Skipped = append(s.Skipped, subnet.Skipped{Key: "junk", Subnets: []netip.Prefix{drawPrefix(t, p)}})
	}
	seen := map[netip.Prefix]bool{}
	for range rapid.IntRange(0, 20).Draw(t, "history") {
		h := subnet.Held{
			Subnet: drawPrefix(t, p), Rank: int64(len(s.Held)) * 7 % 23, // 23 is prime: no two alike, in no order
			Node: rapid.SampledFrom([]string{"h1", "other"}).Draw(t, "holder"), Released: rapid.Bool().Draw(t, "released"),
		}
		if !seen[h.Subnet] { // the store has one record for each
			seen[h.Subnet] = true
			s.Held = append(s.Held, h)
		}
	}
	return s
}

// smallPool has 16 subnets, of which some are handed out.
func smallPool(t *rapid.T) subnet.Pool {
	network := rapid.SampledFrom([]string{"10.5.16.0/24", "fd00:5:0:10::/60"}).Draw(t, "network")
	p := subnet.Pool{Network: netip.MustParsePrefix(network)}
	p.SubnetLen = p.Network.Bits() + 4
	low := rapid.Uint64Range(0, 15).Draw(t, "low")
	p.Min, p.Max = p.At(low).Addr(), p.At(rapid.Uint64Range(low, 15).Draw(t, "high")).Addr()
	return p
}

// candidates sorts what Pick may choose from by trying each subnet: those free, beginning with the one that the name says,
// and of these the ones that nobody ever used.
func candidates(t *rapid.T, s subnet.Snapshot, p subnet.Pool) (free, unused []netip.Prefix) {
	var taken, used []netip.Prefix
	for _, l := range s.Leases {
		taken = append(taken, l.Subnets()...)
	}
	for _, k := range s.Skipped {
		if k.Subnets[0].Bits() > p.Network.Bits() { // what covers all of the pool is nobody's
			taken = append(taken, k.Subnets...)
		}
	}
	for _, h := range s.Held {
		used = append(used, h.Subnet)
	}
	first, err := subnet.Snapshot{Config: s.Config}.Pick("h1")
	if err != nil {
		t.Fatalf("an empty network: %v", err)
	}
	start, _ := p.Index(first.Subnets()[0])
	for n := range uint64(16) {
		candidate := p.At((start + n) % 16)
		if candidate.Addr().Less(p.Min) || p.Max.Less(candidate.Addr()) || overlapsAny(candidate, taken) {
			continue
		}
		free = append(free, candidate)
		if !overlapsAny(candidate, used) {
			unused = append(unused, candidate)
		}
	}
	return free, unused
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

// wanted is Pick in slow motion.
func wanted(s subnet.Snapshot, free, unused []netip.Prefix) netip.Prefix {
	var own, oldest subnet.Held
	for _, h := range s.Held {
		for _, f := range free {
			if f != h.Subnet {
				continue
			}
			if h.Node == "h1" && (!own.Subnet.IsValid() || h.Rank > own.Rank) {
				own = h
			}
			if !oldest.Subnet.IsValid() || h.Rank < oldest.Rank {
				oldest = h
			}
		}
	}
	switch {
	case own.Subnet.IsValid():
		return own.Subnet
	case len(unused) > 0:
		return unused[0]
	case oldest.Subnet.IsValid():
		return oldest.Subnet
	}
	return free[0]
}

func TestPickNeverOverlapsAndOnlyGivesUpWhenAllIsCovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := smallPool(t)
		s := drawSnapshot(t, p)
		free, unused := candidates(t, s, p)
		l, err := s.Pick("h1")
		if len(free) == 0 {
			if !errors.Is(err, subnet.ErrNoSpace) {
				t.Fatalf("all is covered: got %v (%v), want ErrNoSpace", l.Subnets(), err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%v are free: %v", free, err)
		}
		got := l.Subnets()
		if len(got) != 1 || got[0].Addr().Less(p.Min) || p.Max.Less(got[0].Addr()) || got[0].Bits() != p.SubnetLen {
			t.Fatalf("got %v, want one /%d from %s to %s", got, p.SubnetLen, p.Min, p.Max)
		}
		if where, taken := s.Overlapping(got[0]); taken {
			t.Fatalf("%s overlaps %s", got[0], where)
		}
		if want := wanted(s, free, unused); got[0] != want {
			t.Fatalf("\n got %s\nwant %s\nfree %v\nof these never used %v", got[0], want, free, unused)
		}
	})
}
