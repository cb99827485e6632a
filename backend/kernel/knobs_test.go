package kernel_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
)

// TestKnobsOfTheUplinkAreWatchedWhateverItIsNow: of the one that it was, nobody cares any more.
func TestKnobsOfTheUplinkAreWatchedWhateverItIsNow(t *testing.T) {
	pass(t, open(t), backendtest.Network(t))
	for _, name := range []string{"eth8", "eth9"} {
		ip(t, "link add "+name+" type bridge")
		t.Cleanup(func() { ip(t, "link del "+name) })
	}
	var uplink atomic.Pointer[string]
	set := func(name string) { uplink.Store(&name) }
	set("eth8")
	w := &watched{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- kernel.WatchKnobs(ctx, with(nil), func() string { return *uplink.Load() }, func() { w.kicks.Add(1) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	w.atLeast(1) // what is there when it starts
	turn := func(dev string) {
		t.Helper()
		before := w.kicks.Load()
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+dev+"/accept_ra", []byte("2"), 0))
		w.atLeast(before + 1)
	}
	turn("eth8")
	before := w.kicks.Load()
	set("eth9")
	w.atLeast(before + 1)
	turn("eth9")
}
