package backend_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
)

var errRefused = errors.New("no buffer space available")

// refused starts a loop over a kernel that does not take the route to h8, and returns when it was refused first.
func refused(t *testing.T) (*loop, *backendtest.Fake, time.Time) {
	t.Helper()
	k := backendtest.NewFake(host())
	k.Refuse(route8(t), errRefused)
	l := start(t, k)
	began := time.Now()
	l.Want(three(t))
	advance(0)
	checkFault(t, l, began)
	return l, k, began
}

// checkFault says that the route to h8 is the one fault, since the given time.
func checkFault(t *testing.T, l *loop, since time.Time) {
	t.Helper()
	want := backend.Fault{Change: "+ " + route8(t).String(), Since: since, Why: errRefused.Error()}
	if st := l.Status(); st.Synced || len(st.Faults) != 1 || st.Faults[0] != want {
		t.Errorf("\n got synced: %t, %+v\nwant only %+v", st.Synced, st.Faults, want)
	}
}

func TestARefusedRowDoesNotBlockTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, k, _ := refused(t)
		want := strings.Replace(backend.Plan(host(), three(t)).String(), route8(t).String()+"\n", "", 1)
		checkText(t, k.State().String(), want)
	})
}

func TestARefusedRowIsTriedAgainAndKeepsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k, began := refused(t)
		for n := 2; n < 6; n++ {
			advance(pace.Retry)
			checkFault(t, l, began)
			if len(l.passes()) != n {
				t.Errorf("%d passes after %s, want %d", len(l.passes()), time.Since(began), n)
			}
		}
		k.Refuse(route8(t), nil)
		advance(pace.Retry)
		checkSynced(t, l, k, three(t))
	})
}

func TestAFaultThatComesBackIsANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k, _ := refused(t)
		k.Refuse(route8(t), nil)
		advance(pace.Retry)
		checkSynced(t, l, k, three(t))
		k.Refuse(route8(t), errRefused)
		k.Lose(route8(t))
		advance(time.Second)
		again := time.Now()
		l.Kick()
		advance(0)
		checkFault(t, l, again)
	})
}

// That the kernel could not be asked for a moment says nothing about the row.
func TestAFaultKeepsItsTimeOverAReadThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k, began := refused(t)
		k.Down(errors.New("dump interrupted"))
		advance(pace.Retry)
		if st := l.Status(); st.Error == "" {
			t.Fatalf("no error of the read: %+v", st)
		}
		k.Down(nil)
		advance(pace.Retry)
		checkFault(t, l, began)
	})
}

// forgetful is a kernel that says yes to a row and does not keep it.
type forgetful struct {
	*backendtest.Fake
	row     backend.Entry
	applies int
}

func (f *forgetful) Apply(changes []backend.Change) []error {
	f.applies++
	errs := f.Fake.Apply(changes)
	f.Lose(f.row)
	return errs
}

func TestARowThatTheKernelTakesButDoesNotKeepIsAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &forgetful{Fake: backendtest.NewFake(host()), row: route8(t)}
		l := start(t, k)
		l.Want(three(t))
		advance(0)
		st := l.Status()
		if st.Synced || len(st.Faults) != 1 || !strings.Contains(st.Faults[0].Change, route8(t).String()) || st.Faults[0].Why == "" {
			t.Errorf("\n got synced: %t, error: %q, faults: %+v\nwant a fault of %s", st.Synced, st.Error, st.Faults, route8(t))
		}
		if k.applies > 5 {
			t.Errorf("tried %d times in one pass", k.applies)
		}
	})
}

func TestAFailedReadIsTheErrorAndNothingIsTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		k.Lose(route8(t))
		k.Down(errors.New("dump interrupted"))
		before := k.State().String()
		l.Kick()
		advance(3 * pace.Retry)
		checkText(t, k.State().String(), before)
		if st := l.Status(); st.Synced || !strings.Contains(st.Error, "dump interrupted") {
			t.Errorf("status: %+v, want the read's error", st)
		}
		k.Down(nil)
		advance(pace.Retry)
		checkSynced(t, l, k, three(t))
	})
}

func TestASnapshotWithoutOwnLeaseChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := settled(t)
		before := k.State().String()
		without := three(t)
		without.Revision, without.Leases = 2, without.Leases[1:]
		l.Want(without)
		advance(2 * pace.Max)
		checkText(t, k.State().String(), before)
		if st := l.Status(); st.Synced || !strings.Contains(st.Error, "no lease of this node") || st.Revision != 2 || st.Rows != 0 || st.Peers != 0 {
			t.Errorf("status: %+v, want it to say that there is no lease, and rows for nobody", st)
		}
		again := three(t)
		again.Revision = 3
		l.Want(again)
		advance(pace.Min)
		checkSynced(t, l, k, again)
		checkText(t, diffText(l.last().Made), "")
	})
}
