package backend_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/subnet"
)

var pace = backend.Pace{Min: 50 * time.Millisecond, Retry: time.Second, Max: 30 * time.Second}

// loop is a running reconciler and what it reported.
type loop struct {
	*backend.Reconciler
	mu       sync.Mutex
	reported []backend.Pass
}

func (l *loop) report(p backend.Pass) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reported = append(l.reported, p)
}

// passes returns those made so far.
func (l *loop) passes() []backend.Pass {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.reported)
}

func (l *loop) last() backend.Pass { return l.passes()[len(l.passes())-1] }

// start runs a reconciler until the test ends. The test must be in a bubble of synctest.
func start(t *testing.T, k backend.Kernel) *loop {
	t.Helper()
	l := &loop{}
	l.Reconciler = backend.NewReconciler(k, pace, l.report)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v, want %v", err, context.Canceled)
		}
	})
	return l
}

// advance lets the bubble's time go on, and everything happen that is to happen until then.
func advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settled starts a loop over a kernel that it has brought to the plan of three hosts.
func settled(t *testing.T) (*loop, *backendtest.Fake) {
	t.Helper()
	k := backendtest.NewFake(host())
	l := start(t, k)
	l.Want(three(t))
	advance(pace.Min)
	checkSynced(t, l, k, three(t))
	return l, k
}

// checkSynced says that the kernel holds the plan and the status says so.
func checkSynced(t *testing.T, l *loop, k *backendtest.Fake, s subnet.Snapshot) {
	t.Helper()
	checkText(t, k.State().String(), backend.Plan(host(), s).String())
	st := l.Status()
	if !st.Synced || st.Error != "" || len(st.Faults) > 0 || st.Revision != s.Revision || st.Rows != len(k.State()) || st.Peers != len(s.Leases)-1 {
		t.Errorf("status: %+v, want it synced with %d rows for %d peers at revision %d", st, len(k.State()), len(s.Leases)-1, s.Revision)
	}
}

// route8 is the route to h8 and its text, the row that the stories below are about.
func route8(t *testing.T) backend.Entry {
	t.Helper()
	for _, row := range backend.Plan(host(), three(t)) {
		if row.String() == "10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd" {
			return row
		}
	}
	t.Fatal("no route to h8")
	return nil
}

func TestLoopTouchesNothingBeforeWant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := backendtest.NewFake(host())
		k.Plant(route8(t))
		l := start(t, k)
		l.Kick()
		advance(3 * pace.Max)
		checkText(t, k.State().String(), route8(t).String()+"\n")
		if st := l.Status(); k.Reads() != 0 || len(l.passes()) != 0 || st.Passes != 0 || st.Synced {
			t.Errorf("%d reads, %d passes, status %+v, want nothing", k.Reads(), len(l.passes()), st)
		}
	})
}

func TestLoopMakesFewPassesOfManyWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := backendtest.NewFake(host())
		l := start(t, k)
		s := three(t)
		for s.Revision = 1; s.Revision < 1000; s.Revision++ {
			l.Want(s)
		}
		l.Want(s)
		advance(2 * pace.Min)
		checkSynced(t, l, k, s)
		if len(l.passes()) > 2 {
			t.Errorf("%d passes for a burst, want 1 or 2", len(l.passes()))
		}
		before := len(l.passes())
		for range 1000 {
			s.Revision++
			l.Want(s)
			advance(time.Millisecond)
		}
		advance(pace.Min)
		checkSynced(t, l, k, s)
		if made, most := len(l.passes())-before, int(time.Second/pace.Min)+2; made > most {
			t.Errorf("%d passes in a second of wants, want at most %d", made, most)
		}
	})
}

func TestLoopBringsALostRowBack(t *testing.T) {
	for _, c := range []struct {
		claim string
		kick  bool
		after time.Duration
	}{
		{"soon after a kick", true, pace.Min},
		{"without a kick, for silence proves nothing", false, pace.Max},
	} {
		t.Run(c.claim, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, k := settled(t)
				k.Lose(route8(t))
				if c.kick {
					l.Kick()
				}
				advance(c.after)
				checkSynced(t, l, k, three(t))
				checkText(t, diffText(l.last().Made), "+ "+route8(t).String()+"\n")
			})
		})
	}
}

func TestLoopRemembersAKickDuringAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slow{Fake: backendtest.NewFake(host()), read: 20 * time.Millisecond}
		l := start(t, k)
		l.Want(three(t))
		advance(30 * time.Millisecond) // the first read is done, the second under way
		k.Lose(route8(t))
		l.Kick()
		advance(time.Second)
		checkSynced(t, l, k.Fake, three(t))
	})
}

func TestLoopMakesNoChangeInSteadyState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		before := len(l.passes())
		advance(10 * pace.Max)
		checkSynced(t, l, k, three(t))
		for _, p := range l.passes()[before:] {
			checkText(t, diffText(p.Made), "")
		}
		if n := len(l.passes()) - before; n < 9 || n > 11 {
			t.Errorf("%d passes in ten times %s, want about ten", n, pace.Max)
		}
		if st := l.Status(); st.Made != len(k.State()) || st.Passes != len(l.passes()) {
			t.Errorf("%d changes in %d passes, want %d in %d", st.Made, st.Passes, len(k.State()), len(l.passes()))
		}
	})
}

// A restarted daemon has no memory: what is ours it knows by the kernel alone.
func TestLoopRemovesExactlyWhatIsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := backendtest.NewFake(host())
		for _, row := range backend.Plan(host(), three(t)).Entries() {
			k.Plant(row)
		}
		less := three(t)
		less.Leases = less.Leases[:2]
		l := start(t, k)
		l.Want(less)
		advance(0)
		checkSynced(t, l, k, less)
		checkText(t, diffText(l.passes()[0].Made), `- 10.5.200.0/24 nhid 142000200 via 10.5.200.0 dev overlay.1 onlink proto overlayd
- nexthop id 142000200 via 10.5.200.0 dev overlay.1 onlink proto overlayd
- 10.5.200.0 dev overlay.1 lladdr 5e:1f:00:00:00:09 PERMANENT
- 5e:1f:00:00:00:09 dev overlay.1 dst 198.51.100.9 self permanent
- element inet overlayd subnets4 { 198.51.100.9 . 10.5.200.0/24 }
- element inet overlayd hosts4 { 198.51.100.9 . 198.51.100.9/32 }
`)
	})
}

// Altering the VNI takes a new device, and with the old one all its rows go.
func TestLoopMakesADeviceAnewInOnePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		s := three(t)
		s.Revision, s.Config.Backend.VNI = 2, 7
		before := len(l.passes())
		l.Want(s)
		advance(pace.Min)
		checkSynced(t, l, k, s)
		if n := len(l.passes()) - before; n != 1 {
			t.Errorf("%d passes, want 1", n)
		}
	})
}

// slow is a kernel whose reads take time.
type slow struct {
	*backendtest.Fake
	read time.Duration
}

func (s *slow) Read() (backend.Host, backend.State, error) {
	<-time.After(s.read)
	return s.Fake.Read()
}

func TestLoopLeavesASlowHostHalfOfItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slow{Fake: backendtest.NewFake(host()), read: 100 * time.Millisecond}
		l := start(t, k)
		l.Want(three(t))
		advance(time.Second)
		before := k.Reads()
		for range 1000 {
			l.Kick()
			advance(10 * time.Millisecond)
		}
		if busy := time.Duration(k.Reads()-before) * k.read; busy > 5*time.Second+k.read {
			t.Errorf("reading took %s of 10s though nothing changed, want half of it at most", busy)
		}
		if took := l.Status().Took; took != k.read {
			t.Errorf("the last pass took %s, want %s", took, k.read)
		}
	})
}

func TestRunReturnsTheContextsError(t *testing.T) {
	for _, c := range []struct {
		claim string
		want  bool
		after time.Duration
	}{
		{"while nothing is wanted", false, time.Minute},
		{"while it pauses after a pass", true, pace.Min / 2},
		{"while it waits for the next pass", true, time.Minute},
	} {
		t.Run(c.claim, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := backend.NewReconciler(backendtest.NewFake(host()), pace, nil)
				if c.want {
					r.Want(three(t))
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), c.after)
				defer cancel()
				if err := r.Run(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != c.after {
					t.Errorf("after %s: %v, want %v after %s", time.Since(began), err, context.DeadlineExceeded, c.after)
				}
			})
		})
	}
}
