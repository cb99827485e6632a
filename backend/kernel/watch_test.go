package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/backend"
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
		near := kernel.Near{
			Route: func(p netip.Prefix) bool { return p == netip.MustParsePrefix("192.0.2.8/32") },
			VTEP:  func(a netip.Addr) bool { return a == netip.MustParseAddr("10.5.35.0") },
		}
		ended <- new(kernel.Ear).Watch(ctx, near, func() { kicks.Add(1) }, func(err error) { t.Errorf("lost: %v", err) })
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
	const times = 50 // a kernel has things of its own to tell meanwhile, but not as many
	for _, c := range []struct {
		who   string
		acts  [2]string
		kicks bool
	}{
		{"a stranger's route", [2]string{"route add 10.6.0.0/16 dev eth0 proto static", "route del 10.6.0.0/16"}, false},
		{"a neighbour", neighbour("192.0.2.99"), false},
		{"a peer's VTEP that may age", neighbour("10.5.35.0"), true},
	} {
		before := kicks.Load()
		for range times {
			ip(t, c.acts[0])
			ip(t, c.acts[1])
		}
		err := lab.Eventually("kicks", func() error {
			if got := kicks.Load() - before; got < 2*times && c.kicks || got >= times && !c.kicks {
				return fmt.Errorf("%d for %d changes", got, 2*times)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", c.who, err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// neighbour comes and goes as the kernel's do.
func neighbour(addr string) [2]string {
	return [2]string{"neigh replace " + addr + " lladdr 02:00:00:00:00:02 nud reachable dev eth0", "neigh change " + addr + " nud stale dev eth0"}
}

// TestAnEarIsShutWhileVeryManyRowsAreMade: it is not told of each, and hears again afterwards.
func TestAnEarIsShutWhileVeryManyRowsAreMade(t *testing.T) {
	plugIn(t)
	ear := new(kernel.Ear)
	k, err := kernel.Open(with(func(o *kernel.Options) { o.Node, o.Ear = "peer0", ear }))
	must(t, err)
	t.Cleanup(func() {
		_, err := backend.Remove(k)
		must(t, errors.Join(err, k.Close()))
	})
	pass(t, k, crowd(t, 2)) // devices and their kind
	var kicks atomic.Int64
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		near := kernel.Near{Route: func(netip.Prefix) bool { return false }, VTEP: func(netip.Addr) bool { return false }}
		ended <- ear.Watch(ctx, near, func() { kicks.Add(1) }, func(err error) { t.Errorf("lost: %v", err) })
	}()
	more := func(than int64) error {
		return lab.Eventually("kicks", func() error {
			if got := kicks.Load(); got <= than {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}
	must(t, more(1)) // one for each socket
	before := kicks.Load()
	const peers = 400
	if made := pass(t, k, crowd(t, peers)); len(made) < 4*peers {
		t.Fatalf("only %d rows were made", len(made))
	}
	if got := kicks.Load() - before; got > peers {
		t.Errorf("%d kicks for rows of our own", got)
	}
	before = kicks.Load()
	ip(t, "route add 10.250.0.0/24 dev eth0 proto 142")
	if err := more(before); err != nil {
		t.Errorf("deaf to routes afterwards: %v", err)
	}
	before = kicks.Load()
	nft(t, "delete table bridge overlayd")
	if err := more(before); err != nil {
		t.Errorf("deaf to nft afterwards: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
