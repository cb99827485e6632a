package etcd_test

import (
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet/etcd"
)

// TestAConnectionThatDiedInSilenceIsGivenUp: no packet passes any more, and none says so. 15 s is the time for noticing it;
// then the watch goes on over another connection, or over another endpoint. (A busy machine gets twice that.)
func TestAConnectionThatDiedInSilenceIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"and a new one is made", "and another endpoint is used"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, wide)
			line, spare := lay(t, n.url), lay(t, n.url)
			spare.cut()
			h := hostWith(t, "host1", "192.0.2.7", etcd.Options{Endpoints: []string{line.url, spare.url}, Prefix: prefix})
			w := h.watch(t)
			one := n.peer(t, 1, "02:00:00:00:00:01")
			eventually(t, w.last, one)
			if name == "and a new one is made" {
				line.freeze()
			} else {
				spare.mend(t)
				until(t, spare.used, func() string { return "the other endpoint is not connected to" })
				line.mute(t)
			}
			start := time.Now()
			two := n.peer(t, 2, "02:00:00:00:00:02")
			eventually(t, w.last, one+two)
			t.Logf("heard after %s", time.Since(start))
		})
	}
}
