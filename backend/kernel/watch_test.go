package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

// TestWatchKicksForWhatMayConcernUs: a route of ours that a stranger's takes the place of is told only as theirs.
func TestWatchKicksForWhatMayConcernUs(t *testing.T) {
	plugIn(t)
	ctx, cancel := context.WithCancel(t.Context())
	var kicks atomic.Int64
	ended := make(chan error, 1)
	go func() {
		near := func(p netip.Prefix) bool { return p == netip.MustParsePrefix("192.0.2.8/32") }
		ended <- kernel.Watch(ctx, near, func() { kicks.Add(1) }, func(err error) { t.Errorf("lost: %v", err) })
	}()
	must(t, lab.Eventually("the watch begins", func() error {
		if kicks.Load() == 0 {
			return errors.New("not one kick")
		}
		return nil
	}))
	for _, act := range []string{
		"route add 10.5.35.0/24 dev eth0 proto 142",
		"route replace 10.5.35.0/24 dev eth0 proto static mtu 1400",
		"link set eth0 mtu 1400",
		"route add 192.0.2.8 dev eth0 proto static", // a router between us and a peer
		"route del 192.0.2.8",
	} {
		before := kicks.Load()
		ip(t, act)
		if err := lab.Eventually("a kick", func() error {
			if kicks.Load() == before {
				return errors.New("none")
			}
			return nil
		}); err != nil {
			t.Errorf("ip %s: %v", act, err)
		}
	}
	before := kicks.Load()
	const times = 50 // a kernel has things of its own to tell meanwhile, but not as many
	for range times {
		ip(t, "route add 10.6.0.0/16 dev eth0 proto static")
		ip(t, "route del 10.6.0.0/16")
	}
	if got := kicks.Load() - before; got >= times {
		t.Errorf("%d kicks for %d strangers' routes, want none of them to kick", got, times)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
