package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

// watched counts kicks.
type watched struct {
	t     *testing.T
	kicks atomic.Int64
	hold  atomic.Pointer[chan struct{}] // a kick waits for it
}

// watch runs the watch until the test ends. It has begun when watch returns.
func watch(t *testing.T) *watched {
	t.Helper()
	w := &watched{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	kick := func() {
		w.kicks.Add(1)
		if hold := w.hold.Load(); hold != nil {
			<-*hold
		}
	}
	nowhere := kernel.Near{Route: func(netip.Prefix) bool { return false }, VTEP: func(netip.Addr) bool { return false }}
	go func() {
		ended <- new(kernel.Ear).Watch(ctx, nowhere, kick, func(err error) { t.Errorf("lost: %v", err) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	w.atLeast(2) // one for each socket
	return w
}

// atLeast waits for the count of kicks, no longer than a repair may take.
func (w *watched) atLeast(n int64) {
	w.t.Helper()
	err := lab.Within(time.Second, fmt.Sprintf("%d kicks", n), func() error {
		if got := w.kicks.Load(); got < n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}

func TestWatchKicksForWhatIsDoneToFilters(t *testing.T) {
	k := open(t)
	pass(t, k, backendtest.Network(t))
	t.Cleanup(func() {
		nft(t, "add table inet mine; delete table inet mine; add table ip filter; delete table ip filter")
	})
	nft(t, "add table inet mine; add chain inet mine in { type filter hook input priority 0; }")
	w := watch(t)
	for _, script := range []string{
		"insert rule inet overlayd guard accept",
		"flush chain inet overlayd guard",
		"delete chain bridge overlayd settings",
		"delete element inet overlayd subnets4 { 192.0.2.8 . 0x0a0523 }",
		"add element bridge overlayd ports { veth99 }",
		"add table inet overlayd { flags dormant; }",
		"add chain inet mine fw { type filter hook forward priority 0; policy drop; }",
		"chain inet mine fw { policy accept; }",
		"add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
		"add rule ip filter FORWARD accept",
		"delete table inet mine",
		"delete table inet overlayd",
		"flush ruleset",
	} {
		before := w.kicks.Load()
		nft(t, script)
		if w.atLeast(before + 1); t.Failed() {
			t.Fatalf("after %s", script)
		}
	}
}

// TestWatchLeavesOthersRulesAlone: kube-proxy changes thousands of rules and elements in its own tables.
func TestWatchLeavesOthersRulesAlone(t *testing.T) {
	plugIn(t)
	t.Cleanup(func() { nft(t, "delete table ip others") })
	nft(t, "add table ip others; add set ip others s { type ipv4_addr; }; add chain ip others out { type filter hook output priority 0; }; add chain ip others c")
	w := watch(t)
	before := w.kicks.Load()
	const times = 30 // the kernel has things of its own to tell meanwhile, but not as many
	for i := range times {
		nft(t, fmt.Sprintf(`add rule ip others out ip daddr 203.0.113.%d accept; add element ip others s { 203.0.113.%d }; add rule ip others c drop;
			add counter ip others c%d; flush chain ip others c; delete element ip others s { 203.0.113.%d }`, i, i, i, i))
	}
	marker := "add table inet overlayd; delete table inet overlayd"
	nft(t, marker) // when its kick has come, all others would have
	w.atLeast(before + 1)
	if got := w.kicks.Load() - before; got >= times {
		t.Errorf("%d kicks for %d times others' rules", got, times)
	}
}

// TestWatchKicksWhenItsSocketOverflows: of what nobody told it, anything may concern us.
func TestWatchKicksWhenItsSocketOverflows(t *testing.T) {
	plugIn(t)
	for _, dev := range []string{"eth0", "cable"} { // which would go on telling of itself
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+dev+"/disable_ipv6", []byte("1"), 0))
	}
	w := watch(t)
	release := make(chan struct{})
	w.hold.Store(&release)
	before := w.kicks.Load()
	ip(t, "route add 10.5.35.0/24 dev cable proto 142") // this kick waits
	w.atLeast(before + 1)
	const many = 16000 // strangers' routes, none of which kicks, and more than 8 MiB of them
	var batch strings.Builder
	for i := range many {
		fmt.Fprintf(&batch, "route add 10.100.%d.%d/32 dev cable proto static\n", i>>8, i&0xff)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v: %s", err, text)
	}
	if got := w.kicks.Load(); got != before+1 {
		t.Fatalf("%d kicks, one of which waits", got-before)
	}
	w.hold.Store(nil)
	close(release)
	w.atLeast(before + 2)
}
