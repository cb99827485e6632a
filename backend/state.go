package backend

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// State is a set of rows, each under its key. Make one with [NewState].
type State map[Entry]Entry

// NewState returns the state that holds the given rows; of two with one key the later.
func NewState(entries ...Entry) State {
	s := make(State, len(entries))
	s.Add(entries...)
	return s
}

// Add puts rows into the state, in the place of those with the same key.
func (s State) Add(entries ...Entry) {
	for _, e := range entries {
		s[e.key()] = e
	}
}

// Found adds a row that was read from a set, which can hold several with one key: all but the first are strays.
func (s State) Found(e Entry) {
	if _, taken := s[e.key()]; taken {
		e = Stray{Row: e}
	}
	s.Add(e)
}

// prefer returns the state with what is wanted under its key, where a stray is that and the row beside it is not.
func (s State) prefer(want State) State {
	for _, e := range s {
		stray, ok := e.(Stray)
		if !ok || stray.Row == nil || want[stray.Row.key()] != stray.Row {
			continue
		}
		s = maps.Clone(s)
		other := s[stray.Row.key()]
		delete(s, stray.key())
		s.Add(stray.Row, Stray{Row: other})
	}
	return s
}

// Entries returns the rows in the order in which they are made.
func (s State) Entries() []Entry {
	all := make([]Entry, 0, len(s))
	for _, e := range s {
		all = append(all, e)
	}
	slices.SortFunc(all, compare)
	return all
}

// String returns the rows, a line each, in the order in which they are made.
func (s State) String() string {
	var b strings.Builder
	for _, e := range s.Entries() {
		b.WriteString(e.String())
		b.WriteByte('\n')
	}
	return b.String()
}

func compare(a, b Entry) int {
	if c := cmp.Compare(a.rank(), b.rank()); c != 0 {
		return c
	}
	return compareRows(a, b)
}

// compareRows orders rows of one kind. Kinds of which there is one per peer are compared without making their text.
func compareRows(a, b Entry) int {
	switch a := a.(type) {
	case FDB:
		if b, ok := b.(FDB); ok {
			return cmp.Or(slices.Compare(a.MAC[:], b.MAC[:]), strings.Compare(a.Dev, b.Dev))
		}
	case Neigh:
		if b, ok := b.(Neigh); ok {
			return cmp.Or(a.IP.Compare(b.IP), strings.Compare(a.Dev, b.Dev))
		}
	case Nexthop:
		if b, ok := b.(Nexthop); ok {
			return cmp.Compare(a.ID, b.ID)
		}
	case Pair:
		if b, ok := b.(Pair); ok {
			return cmp.Or(strings.Compare(a.Set, b.Set), a.Inner.Addr().Compare(b.Inner.Addr()), cmp.Compare(a.Inner.Bits(), b.Inner.Bits()))
		}
	case Route:
		if b, ok := b.(Route); ok {
			return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()), cmp.Compare(a.Metric, b.Metric))
		}
	}
	return strings.Compare(a.String(), b.String())
}

// Change is one step from what the kernel has to what is wanted: a row to make (Old is nil), to alter in place (neither
// is nil, both have one key) or to remove (New is nil).
type Change struct{ Old, New Entry }

// Row is the row that the change is about: the new one, or the one to be removed.
func (c Change) Row() Entry {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// String returns the change as a diff shows it.
func (c Change) String() string {
	switch {
	case c.Old == nil:
		return "+ " + c.New.String()
	case c.New == nil:
		return "- " + c.Old.String()
	}
	return "~ " + c.New.String() + " (was " + c.Old.String() + ")"
}

// Diff returns the changes that turn have into want, in an order in which each can be made and nothing that works is
// broken in between: devices that must go first, for they may hold what new ones need; then new and altered rows, what
// others need first; then the remaining rows that must go, what needs others first. So a new peer has its FDB and
// neighbour entries before its route, and a gone peer loses its route before them. Equal states have an empty diff.
func Diff(want, have State) []Change {
	makes, found := missing(want, have)
	if found+have.kept(want) == len(have) { // nothing must go: strays neither, for nobody wants one
		slices.SortFunc(makes, func(a, b Change) int { return compare(a.Row(), b.Row()) })
		return makes
	}
	have = have.prefer(want)
	makes, _ = missing(want, have)
	var devices, removes []Change
	for key, h := range have {
		if _, wanted := want[key]; wanted {
			continue
		}
		switch h.(type) {
		case VXLAN, Bridge:
			devices = append(devices, Change{Old: h})
		default:
			if !stays(h) {
				removes = append(removes, Change{Old: h})
			}
		}
	}
	for _, part := range [][]Change{devices, makes, removes} {
		slices.SortFunc(part, func(a, b Change) int { return compare(a.Row(), b.Row()) })
	}
	slices.Reverse(removes)
	return slices.Concat(devices, makes, removes)
}

// stays says whether a row is never removed: a knob cannot be absent, and what it was before is not known; a pod's link is
// the plugin's.
func stays(e Entry) bool {
	switch e.(type) {
	case Sysctl, Port:
		return true
	}
	return false
}

// kept counts the rows that are not wanted and stay.
func (s State) kept(want State) int {
	n := 0
	for key, row := range s {
		if !stays(row) {
			continue
		}
		if _, wanted := want[key]; !wanted {
			n++
		}
	}
	return n
}

// missing returns the changes that make or alter what is wanted, not in order, and how many of the keys are there.
func missing(want, have State) (makes []Change, found int) {
	if n := len(want) - len(have); n > 0 {
		makes = make([]Change, 0, n)
	}
	for key, w := range want {
		h, there := have[key]
		if there {
			found++
		}
		if h != w {
			makes = append(makes, Change{Old: h, New: w})
		}
	}
	return makes, found
}
