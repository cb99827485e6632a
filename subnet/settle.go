package subnet

import (
	"slices"
	"time"
)

// Missing is a lease that the store no longer has and that is still believed.
type Missing struct {
	Lease Lease
	Since time.Time
}

// A disappearance of more leases than massLeast, and of more than half of them, is not believed at once: stores are wiped
// and restored more often than most of a network goes.
const massLeast = 3

// Settle returns next as it is to be believed after prev, the settled snapshot before it. Of a mass disappearance in one
// snapshot, and of any in a store that is in doubt, the leases stay for the grace time, listed in Missing; they go when it is over and they are still missing, at
// once when a new lease claims their subnet, node, address or MAC, and at once when the holder gave them up on purpose.
// Fewer go at once. Callers come again when the earliest of Missing is due.
func Settle(prev, next Snapshot, now time.Time, grace time.Duration) Snapshot {
	since := make(map[string]time.Time, len(prev.Missing))
	for _, m := range prev.Missing {
		since[leaseID(m.Lease)] = m.Since
	}
	admitted := newVetter(next.Config)
	for _, l := range next.Leases {
		admitted.admit(l)
	}
	var held, fresh []Missing
	for _, l := range prev.Leases {
		if known, ok := since[leaseID(l)]; ok {
			if now.Sub(known) < grace {
				held = append(held, Missing{l, known})
			}
			continue
		}
		fresh = append(fresh, Missing{l, now})
	}
	before := len(fresh)
	unreadable := func(m Missing) bool { // it is there, and will be said to be skipped
		return slices.ContainsFunc(next.Skipped, func(k Skipped) bool { return k.Reason == ReasonValue && slices.Equal(k.Subnets, m.Lease.Subnets()) })
	}
	for _, l := range prev.Leases {
		if m := (Missing{l, now}); unreadable(m) {
			held = append(slices.DeleteFunc(held, func(h Missing) bool { return h.Lease == l }), m)
		}
	}
	settled := func(m Missing) bool { // still there, superseded, or given up
		reason, _ := admitted.clash(m.Lease)
		return reason != "" || released(next.Held, m.Lease)
	}
	held = slices.DeleteFunc(held, settled)
	fresh = slices.DeleteFunc(fresh, settled)
	doubt := next.Doubt || next.Revision < prev.Revision
	if doubt || len(fresh) > massLeast && 2*len(fresh) > before {
		held = append(held, fresh...)
	}
	for _, m := range held {
		if reason, _ := admitted.admit(m.Lease); reason == "" {
			next.Leases = append(slices.Clip(next.Leases), m.Lease)
			next.Missing = append(next.Missing, m)
		}
	}
	return next
}

// leaseID tells leases of one holder and subnet from others.
func leaseID(l Lease) string { return l.Owner() + " " + joinPrefixes(l.Subnets()) }

// released says whether the holder gave all of the lease's subnets up on purpose.
func released(held []Held, l Lease) bool {
	gone := 0
	for _, h := range held {
		if h.Released && h.Node == l.Node && slices.Contains(l.Subnets(), h.Subnet) {
			gone++
		}
	}
	return gone == len(l.Subnets())
}
