package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// Kernel is the machine whose tables are kept. One goroutine at a time uses it.
type Kernel interface {
	// Read returns what the machine is and the rows in it that are ours.
	Read() (Host, State, error)
	// Apply makes the changes in their order and returns an error or nil for each. One that cannot be made does not
	// keep the others from being made. Removing what is gone is no error.
	Apply(changes []Change) []error
}

// Pace is the rhythm of the loop.
type Pace struct {
	Min   time.Duration // between the end of a pass and the next: a burst of kicks is one pass
	Retry time.Duration // after a pass that could not finish
	Max   time.Duration // after one that could: silence is checked too
}

// DefaultPace repairs well within a second, and looks at all rows twice a minute.
func DefaultPace() Pace {
	return Pace{Min: 20 * time.Millisecond, Retry: time.Second, Max: 30 * time.Second}
}

// maxPause bounds the pause after a pass, which is otherwise at least as long as the pass was: while kicks keep coming,
// passes take half of the time at most.
const maxPause = 500 * time.Millisecond

// rounds bounds one pass. Two do for any change: one makes it, one sees that it is made. A device that is made anew takes
// its rows along, which is a third.
const rounds = 5

// Reconciler keeps a kernel as the wanted snapshot says. Make one with [NewReconciler].
type Reconciler struct {
	kernel Kernel
	pace   Pace
	report func(Pass)
	kick   chan struct{}

	held State // what was wanted and there after the last pass that found nothing to do: the loop's own

	mu     sync.Mutex
	want   *subnet.Snapshot
	status Status
}

// Pass is what one pass of the loop did.
type Pass struct {
	Made   []Change // in order
	Mended []Change // those of Made that undo what somebody else did: the row was right before, or nobody wanted it
	Status Status   // after it
}

// Status is the loop's last result.
type Status struct {
	Revision int64         `json:"revision"` // of the snapshot that the last pass was for; 0 before the first
	Synced   bool          `json:"synced"`   // the last thing done was a read that found nothing to do
	Passes   int           `json:"passes"`
	Made     int           `json:"made"`  // changes since the start
	Rows     int           `json:"rows"`  // rows wanted
	Peers    int           `json:"peers"` // leases of others that the rows are for
	Took     time.Duration `json:"took"`  // duration of the last pass in nanoseconds
	Error    string        `json:"error,omitempty"`
	Faults   []Fault       `json:"faults,omitempty"` // differences that could not be mended, by row
	Host     Host          `json:"-"`                // as last read

	Subnets []netip.Prefix `json:"-"` // the node's own, which the rows are for
}

// Fault is a row that differs from what is wanted.
type Fault struct {
	Change string    `json:"change"` // as the diff shows it
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// NewReconciler returns the loop over k. report, which may be nil, is called after every pass from the loop's goroutine.
func NewReconciler(k Kernel, pace Pace, report func(Pass)) *Reconciler {
	if report == nil {
		report = func(Pass) {}
	}
	return &Reconciler{kernel: k, pace: pace, report: report, kick: make(chan struct{}, 1)}
}

// Want says what the network is now. It does not block; only the latest snapshot counts. A snapshot without a lease for
// the host's node is looked at but changes nothing.
func (r *Reconciler) Want(s subnet.Snapshot) {
	r.mu.Lock()
	r.want = &s
	r.mu.Unlock()
	r.Kick()
}

// Kick asks for a pass soon. It does not block.
func (r *Reconciler) Kick() {
	select {
	case r.kick <- struct{}{}:
	default: // one is already asked for
	}
}

// Status returns the result of the last pass.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Run makes passes until the context ends, and returns its error. It touches nothing before the first [Reconciler.Want].
func (r *Reconciler) Run(ctx context.Context) error {
	timer := time.NewTimer(r.pace.Max)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.kick:
		case <-timer.C:
		}
		next := r.pace.Max
		var pause time.Duration
		if want := r.wanted(); want != nil {
			pass := r.pass(*want)
			r.report(pass)
			if !pass.Status.Synced {
				next = r.pace.Retry
			}
			pause = max(r.pace.Min, min(maxPause, pass.Status.Took))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		timer.Reset(max(0, next-pause))
	}
}

func (r *Reconciler) wanted() *subnet.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want
}

var errNotOurs = errors.New("the store has no lease of this node: nothing is changed until it has")

// pass reads, plans, diffs and applies until a read finds nothing to do or nothing more can be done.
func (r *Reconciler) pass(want subnet.Snapshot) Pass {
	start := time.Now()
	var made, mended []Change
	anew := false // a planned change made the VXLAN device anew: what went with the old one nobody's hand has removed
	last := r.Status()
	now := Status{Revision: want.Revision, Rows: last.Rows, Peers: last.Peers, Faults: last.Faults, Subnets: last.Subnets} // until it is read
	for round := range rounds {
		host, have, err := r.kernel.Read()
		now.Host = host
		own, ours := want.Lease(host.Node)
		if err == nil && !ours {
			err = errNotOurs
			now.Rows, now.Peers = 0, 0
		}
		if err != nil {
			now.Error = err.Error()
			break
		}
		rows := Plan(host, want)
		changes := Diff(rows, have)
		if want.Stale {
			changes = slices.DeleteFunc(changes, func(c Change) bool { return c.New == nil })
		}
		now.Rows, now.Peers, now.Subnets = len(rows), len(want.Leases)-1, own.Subnets()
		now.Synced, now.Faults = len(changes) == 0, nil
		if now.Synced {
			r.held = rows
			break
		}
		done, failed := apply(r.kernel, changes)
		made = append(made, done...)
		repairs, planned := r.repairs(done)
		if !anew {
			mended = append(mended, repairs...)
		}
		anew = anew || planned
		if now.Faults = failed; len(done) == 0 {
			break
		}
		if round == rounds-1 {
			for _, c := range done {
				now.Faults = append(now.Faults, Fault{Change: c.String(), Why: errNotKept.Error()})
			}
		}
	}
	now.Took = time.Since(start)
	return Pass{Made: made, Mended: mended, Status: r.record(now, start, len(made))}
}

// repairs returns the changes that somebody else's hand made necessary, and whether one that was planned is the VXLAN
// device's.
func (r *Reconciler) repairs(done []Change) (repairs []Change, planned bool) {
	for _, c := range done {
		if r.held != nil && r.foreign(c) {
			repairs = append(repairs, c)
		} else if _, device := c.Row().(VXLAN); device {
			planned = true
		}
	}
	return repairs, planned
}

// foreign says whether somebody else's hand made the change necessary: what was found is not what the last clean pass left.
func (r *Reconciler) foreign(c Change) bool { return r.held[c.Row().key()] != c.Old }

var errNotKept = errors.New("the kernel takes it and does not keep it: something else removes it")

// apply makes the changes and returns those that were made, and faults for the others.
func apply(k Kernel, changes []Change) (done []Change, failed []Fault) {
	done = make([]Change, 0, len(changes))
	for i, err := range k.Apply(changes) {
		if err != nil {
			failed = append(failed, Fault{Change: changes[i].String(), Why: err.Error()})
			continue
		}
		done = append(done, changes[i])
	}
	return done, failed
}

// record makes now the status. A fault that was there before keeps its time.
func (r *Reconciler) record(now Status, start time.Time, made int) Status {
	slices.SortFunc(now.Faults, func(a, b Fault) int { return cmp.Compare(a.Change, b.Change) })
	r.mu.Lock()
	defer r.mu.Unlock()
	since := make(map[string]time.Time, len(r.status.Faults))
	for _, f := range r.status.Faults {
		since[f.Change] = f.Since
	}
	for i, f := range now.Faults {
		now.Faults[i].Since = cmp.Or(since[f.Change], start)
	}
	now.Passes = r.status.Passes + 1
	now.Made = r.status.Made + made
	r.status = now
	return now
}

// Remove takes all rows that are ours out of the kernel, and returns what it removed. Knobs stay as they are. It is an
// error, naming the rows, when something is left.
func Remove(k Kernel) ([]Change, error) {
	var made []Change
	var again []Change
	for range rounds {
		_, have, err := k.Read()
		if err != nil {
			return made, err
		}
		if again = Diff(State{}, have); len(again) == 0 {
			return made, nil
		}
		var failed []error
		for i, err := range k.Apply(again) {
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", again[i], err))
				continue
			}
			made = append(made, again[i])
		}
		if err := errors.Join(failed...); err != nil {
			return made, err
		}
	}
	return made, fmt.Errorf("%s, and %d more: rows come back as fast as they are removed: is a daemon still running?", again[0], len(again)-1)
}
