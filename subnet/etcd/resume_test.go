package etcd_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// TestAfterAStopALeaseIsRenewedAndTheNetworkListedAgain: a daemon that was stopped, or whose machine was suspended, trusts
// nothing that it knew. The clock that tells is the boot's, which counts the suspended time.
func TestAfterAStopALeaseIsRenewedAndTheNetworkListedAgain(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "host1", "192.0.2.7")
	var asleep atomic.Int64
	h.terms.Now = func() time.Duration { return now() + time.Duration(asleep.Load()) }
	c := h.claim(t)
	w := h.watch(t)
	until(t, func() bool { return len(w.all()) > 0 }, func() string { return "nothing is listed" })
	k := keep(t, c)
	listed, deadline := len(w.all()), c.Deadline()

	const slept = time.Hour
	until(t, func() bool {
		asleep.Add(int64(slept)) // again and again: nobody knows when Keep looked for the first time
		return len(k.renewals()) > 0 && len(w.all()) > listed
	}, func() string {
		return fmt.Sprintf("renewed at %v, listed %d times since", k.renewals(), len(w.all())-listed)
	})
	if moved := c.Deadline() - deadline; moved < slept {
		t.Errorf("the deadline moved by %s, want %s or more", moved, slept)
	}
	if told := h.told.all(); len(told) > 0 && told[len(told)-1] != nil {
		t.Errorf("told: %v", told)
	}
}
