package kernel_test

import (
	"context"
	"errors"
	"fmt"
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
		ended <- kernel.Watch(ctx, func() { kicks.Add(1) }, func(err error) { t.Errorf("lost: %v", err) })
	}()
	const calm = 20 // looks at the counter without a change
	quiet := func() int64 {
		before, same := kicks.Load(), 0
		must(t, lab.Eventually("the kernel is quiet", func() error {
			now := kicks.Load()
			if same++; now != before || now == 0 {
				before, same = now, 0
			}
			if same < calm {
				return fmt.Errorf("%d kicks", now)
			}
			return nil
		}))
		return before
	}
	for _, c := range []struct {
		act  string
		kick bool
	}{
		{"route add 10.5.35.0/24 dev eth0 proto 142", true},
		{"route replace 10.5.35.0/24 dev eth0 proto static mtu 1400", true},
		{"route add 10.6.0.0/16 dev eth0 proto static", false},
		{"route del 10.5.35.0/24", false}, // theirs by now
		{"link set eth0 mtu 1400", true},
	} {
		before := quiet()
		ip(t, c.act)
		if got := quiet() > before; got != c.kick {
			t.Errorf("ip %s: kicked is %v, want %v", c.act, got, c.kick)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
