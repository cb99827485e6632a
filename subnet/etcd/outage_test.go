package etcd_test

import (
	"fmt"
	"testing"
	"time"
)

// TestAWatchThatWasCutOffHearsWhatItMissed: after a compaction the events are gone, and only a whole list tells that a MAC
// is another and a peer absent.
func TestAWatchThatWasCutOffHearsWhatItMissed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		compact bool
	}{
		{"with a compaction in between", true},
		{"with all events kept", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, wide)
			one, two, three := n.peer(t, 1, "02:00:00:00:00:01"), n.peer(t, 2, "02:00:00:00:00:02"), n.peer(t, 3, "02:00:00:00:00:03")
			line := lay(t, n.url)
			h := hostAt(t, line.url, prefix, "onlooker", "192.0.2.99")
			w := h.watch(t)
			eventually(t, w.last, one+two+three)

			before := w.last()
			line.cut()
			two = n.peer(t, 2, "02:00:00:00:00:22")
			n.remove(t, "/subnets/10.5.3.0-24")
			four := n.peer(t, 4, "02:00:00:00:00:04")
			if c.compact {
				_, err := n.plain.Compact(t.Context(), n.put(t, "/mark", ""))
				must(t, err)
			}
			same(t, w.last(), before)
			line.mend(t)
			eventually(t, w.last, one+two+four)
			if c.compact {
				h.told.await(t, nil, "watch the network", "compacted")
			}
			h.told.awaitEnd(t)

			three = n.peer(t, 3, "02:00:00:00:00:33")
			eventually(t, w.last, one+two+four+three)
			for _, s := range w.all() {
				if len(s.Leases) < 2 || s.Leases[0].Node != "host1" {
					t.Errorf("a partial network was told: %s", describe(s))
				}
			}
		})
	}
}

// TestABadConfigurationDoesNotStopAWatchThatListsAgain: the former configuration stays in use, and leases are heard.
func TestABadConfigurationDoesNotStopAWatchThatListsAgain(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one := n.peer(t, 1, "02:00:00:00:00:01")
	line := lay(t, n.url)
	h := hostAt(t, line.url, prefix, "onlooker", "192.0.2.99")
	w := h.watch(t)
	eventually(t, w.last, one)
	n.put(t, "/config", "{")
	eventually(t, w.last, one+"skipped config: value\n")
	line.cut()
	two := n.peer(t, 2, "02:00:00:00:00:02")
	_, err := n.plain.Compact(t.Context(), n.put(t, "/mark", ""))
	must(t, err)
	line.mend(t)
	eventually(t, w.last, one+two+"skipped config: value\n")
	n.put(t, "/config", wide)
	eventually(t, w.last, one+two)
}

// TestAWatchTellsThatItsConnectionIsDownAndUpAgain: a watch itself would only wait.
func TestAWatchTellsThatItsConnectionIsDownAndUpAgain(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one := n.peer(t, 1, "02:00:00:00:00:01")
	line := lay(t, n.url)
	h := hostAt(t, line.url, prefix, "onlooker", "192.0.2.99")
	w := h.watch(t)
	eventually(t, w.last, one)
	line.cut()
	h.told.await(t, nil, line.url, "connection refused")
	line.mend(t)
	h.told.awaitEnd(t)
	same(t, w.last(), one)
}

// TestAWatchOutlivesARestartOfTheServer: same data, same address.
func TestAWatchOutlivesARestartOfTheServer(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one := n.peer(t, 1, "02:00:00:00:00:01")
	line := lay(t, n.url)
	w := hostAt(t, line.url, prefix, "onlooker", "192.0.2.99").watch(t)
	eventually(t, w.last, one)
	n.restart(t, line, n.dir)
	two := n.peer(t, 2, "02:00:00:00:00:02")
	eventually(t, w.last, one+two)
}

// TestAWipedStoreIsListedAgain: the watches wait for a revision that is far off, and nothing tells them that the store is
// another. Half a minute is the time for noticing it.
func TestAWipedStoreIsListedAgain(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	for i := range 100 {
		n.put(t, "/mark", fmt.Sprint(i))
	}
	one := n.peer(t, 1, "02:00:00:00:00:01")
	line := lay(t, n.url)
	w := hostAt(t, line.url, prefix, "onlooker", "192.0.2.99").watch(t)
	eventually(t, w.last, one)
	n.restart(t, line, t.TempDir())
	n.put(t, "/config", wide)
	two := n.peer(t, 2, "02:00:00:00:00:02")
	untilWithin(t, 33*time.Second, func() bool { return w.last() == two }, func() string { return both(w.last(), two) })
}

// restart ends the server and starts one with the given data. The cable is cut meanwhile: a server waits long for open
// streams before it ends.
func (n *network) restart(t *testing.T, line *cable, dir string) {
	t.Helper()
	line.cut()
	n.server.Close()
	n.start(t, dir)
	line.mend(t)
}
