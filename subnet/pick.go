package subnet

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
)

// ErrNoSpace says that every subnet of a pool is leased or covered by a record that cannot be read.
var ErrNoSpace = errors.New("no free subnet")

// Pick chooses the node's subnets, one of each family in use: those of its live lease, else the one reserved for it, else
// the one it held last, else one never used, searched from a hash of the name on so that joiners do not race for the same one, else the one unused
// for the longest time. It never returns a subnet that overlaps another lease, another node's reservation or a skipped
// record of any length that a host can have.
// The error is [ErrNoSpace] with counts. Only Node and the subnets of the result are set.
func (s Snapshot) Pick(node string) (Lease, error) {
	l := Lease{Node: node}
	own, _ := s.Lease(node)
	taken := s.taken(node)
	for _, p := range s.Config.Pools() {
		kept := own.Subnet
		choice := &l.Subnet
		if !p.Network.Addr().Is4() {
			kept, choice = own.Subnet6, &l.Subnet6
		}
		if kept.IsValid() {
			*choice = kept
			continue
		}
		picked, err := s.pickFrom(p, node, taken)
		if err != nil {
			return Lease{}, err
		}
		*choice = picked
	}
	return l, nil
}

// taken lists what node cannot have.
func (s Snapshot) taken(node string) []netip.Prefix {
	var taken []netip.Prefix
	for _, l := range s.Leases {
		if l.Node != node {
			taken = append(taken, l.Subnets()...)
		}
	}
	for _, r := range s.Reserved {
		if r.Node != node {
			taken = append(taken, r.Subnet)
		}
	}
	for _, k := range s.Skipped {
		for _, p := range k.Subnets {
			if s.Config.holds(p) {
				taken = append(taken, p)
			}
		}
	}
	return taken
}

func (s Snapshot) pickFrom(p Pool, node string, taken []netip.Prefix) (netip.Prefix, error) {
	first, last := p.indexOf(p.Min), p.indexOf(p.Max)
	busy := spansOf(p, taken)
	for _, r := range s.Reserved {
		if index, ok := p.Index(r.Subnet); ok && r.Node == node && !busy.has(index) {
			return r.Subnet, nil
		}
	}
	var used []netip.Prefix
	var mine, oldest *Held
	for _, h := range s.Held {
		index, ok := p.Index(h.Subnet)
		if !ok {
			if _, _, touches := p.span(h.Subnet); touches {
				used = append(used, h.Subnet)
			}
			continue
		}
		used = append(used, h.Subnet)
		if index < first || index > last || busy.has(index) {
			continue
		}
		if h.Node == node && (mine == nil || h.Rank > mine.Rank) {
			mine = &h
		}
		if oldest == nil || h.Rank < oldest.Rank {
			oldest = &h
		}
	}
	if mine != nil {
		return mine.Subnet, nil
	}
	start := first + hash(node)%(last-first+1)
	if index, ok := spansOf(p, append(used, taken...)).free(start, first, last); ok {
		return p.At(index), nil
	}
	if oldest != nil {
		return oldest.Subnet, nil
	}
	// Only a former length's history stands in the way: what is not leased may be taken.
	if index, ok := busy.free(start, first, last); ok {
		return p.At(index), nil
	}
	return netip.Prefix{}, fmt.Errorf("%w: all %d subnets /%d of %s from %s to %s are taken (%d leases, %d reservations, %d unreadable records): "+
		"release one or enlarge the pool", ErrNoSpace, last-first+1, p.SubnetLen, p.Network, p.Min, p.Max, len(s.Leases), len(s.Reserved), len(s.Skipped))
}

func hash(node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node)) // never fails
	return h.Sum64()
}

// spans are ranges of a pool's indices, sorted and disjoint.
type spans []span

type span struct{ first, last uint64 }

func spansOf(p Pool, taken []netip.Prefix) spans {
	var all spans
	for _, t := range taken {
		if first, last, ok := p.span(t); ok {
			all = append(all, span{first, last})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	merged := all[:0]
	for _, s := range all {
		if n := len(merged); n > 0 && s.first <= merged[n-1].last+1 {
			merged[n-1].last = max(merged[n-1].last, s.last)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// at returns the position of the first span that does not end before index.
func (s spans) at(index uint64) int {
	i, _ := slices.BinarySearchFunc(s, index, func(s span, index uint64) int {
		if s.last < index {
			return -1
		}
		return 1
	})
	return i
}

func (s spans) has(index uint64) bool {
	i := s.at(index)
	return i < len(s) && s[i].first <= index
}

// free returns the first index outside all spans, from start to last and then from first on.
func (s spans) free(start, first, last uint64) (uint64, bool) {
	for _, from := range []uint64{start, first} {
		index := from
		if i := s.at(from); i < len(s) && s[i].first <= from {
			index = s[i].last + 1
		}
		if index <= last {
			return index, true
		}
	}
	return 0, false
}
