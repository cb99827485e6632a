package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// watching is a Watch under way.
type watching struct {
	mu    sync.Mutex
	heard []subnet.Snapshot
}

// watch ends with the test, and then must return the context's error.
func (h *host) watch(t *testing.T) *watching {
	w := &watching{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- h.store.Watch(ctx, func(s subnet.Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.heard = append(w.heard, s)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the watch ended with %v, want the context's error", err)
		}
	})
	return w
}

func (w *watching) all() []subnet.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]subnet.Snapshot(nil), w.heard...)
}

// last is the latest snapshot in words.
func (w *watching) last() string {
	all := w.all()
	if len(all) == 0 {
		return "nothing"
	}
	return describe(all[len(all)-1])
}

// peer writes a lease as its node would, and returns its line in a description.
func (n *network) peer(t *testing.T, third int, mac string) string {
	t.Helper()
	n.put(t, fmt.Sprintf("/subnets/10.5.%d.0-24", third), value(third, mac))
	return fmt.Sprintf("10.5.%d.0/24 of host%[1]d via 192.0.2.%[1]d mac %s\n", third, mac)
}

func value(third int, mac string) string {
	return fmt.Sprintf(`{"PublicIP":"192.0.2.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"},"Node":"host%[1]d"}`, third, mac)
}

func TestAWatchHearsTheWholeNetworkAndThenEveryChange(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one, two := n.peer(t, 1, "02:00:00:00:00:01"), n.peer(t, 2, "02:00:00:00:00:02")
	w := n.host(t, "onlooker", "192.0.2.99").watch(t)
	eventually(t, w.last, one+two)
	if first := w.all()[0]; describe(first) != one+two || first.Config.Backend.Port != 8472 {
		t.Errorf("the first snapshot is not whole: %s", describe(first))
	}
	three := n.peer(t, 3, "02:00:00:00:00:03")
	eventually(t, w.last, one+two+three)
	two = n.peer(t, 2, "02:00:00:00:00:22")
	eventually(t, w.last, one+two+three)
	n.remove(t, "/subnets/10.5.1.0-24")
	eventually(t, w.last, two+three)
	now, err := n.plain.Get(t.Context(), prefix)
	must(t, err)
	if all := w.all(); all[len(all)-1].Revision != now.Header.Revision {
		t.Errorf("the snapshot is of revision %d, the store at %d", all[len(all)-1].Revision, now.Header.Revision)
	}
	n.put(t, "/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}`)
	until(t, func() bool { all := w.all(); return all[len(all)-1].Config.Backend.MTU == 1400 }, func() string { return "the new configuration is not heard" })
	same(t, w.last(), two+three)
	for i, s := range w.all()[1:] {
		if s.Revision < w.all()[i].Revision {
			t.Errorf("revision %d after %d", s.Revision, w.all()[i].Revision)
		}
	}
}

func TestAWatchWaitsForAConfiguration(t *testing.T) {
	t.Parallel()
	n := serve(t, "")
	one := n.peer(t, 1, "02:00:00:00:00:01")
	h := n.host(t, "onlooker", "192.0.2.99")
	w := h.watch(t)
	h.told.await(t, etcd.ErrNoConfig, "overlayd config set")
	same(t, w.last(), "nothing")
	n.put(t, "/config", wide)
	eventually(t, w.last, one)
	h.told.awaitEnd(t)
}

// TestAWatchEqualsAListAfterEveryChangeOfTheConfiguration: what fits the network is decided by its configuration.
func TestAWatchEqualsAListAfterEveryChangeOfTheConfiguration(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.peer(t, 1, "02:00:00:00:00:01")
	n.put(t, "/subnets/10.6.2.0-24", value(2, "02:00:00:00:00:02"))
	n.put(t, "/subnets/10.5.3.0-24", strings.Replace(value(3, "02:00:00:00:00:03"), `"VNI":1`, `"VNI":2`, 1))
	h := n.host(t, "onlooker", "192.0.2.99")
	w := h.watch(t)
	for _, c := range []struct{ name, config string }{
		{"the first", wide},
		{"a larger pool", `{"Network":"10.4.0.0/14"}`},
		{"shorter subnets", `{"Network":"10.4.0.0/14","SubnetLen":26}`},
		{"another MTU", `{"Network":"10.4.0.0/14","Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, h.store.ConfigureAnyway(t.Context(), c.config))
			s, err := h.store.List(t.Context())
			must(t, err)
			eventually(t, func() string { return sorted(w.last()) }, sorted(describe(s)))
		})
	}
}

// TestAConfigurationThatHostsCannotFollowIsNotFollowed: somebody wrote it behind our back. The old one stays in use until
// another comes that they can follow.
func TestAConfigurationThatHostsCannotFollowIsNotFollowed(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one := n.peer(t, 1, "02:00:00:00:00:01")
	w := n.host(t, "onlooker", "192.0.2.99").watch(t)
	eventually(t, w.last, one)
	for name, c := range map[string]struct{ config, why string }{
		"pool shrunk under a lease": {`{"Network":"10.5.128.0/17"}`, "10.5.1.0/24 is outside"},
		"another VNI":               {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`, "VNI 1 and port 8472 cannot become 2 and 8472"},
		"another port":              {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`, "port 8472 cannot become 1 and 4789"},
		"a family less":             {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`, "10.5.1.0/24 is outside"},
	} {
		n.put(t, "/config", c.config)
		eventually(t, w.last, one+"skipped config: config\n")
		all := w.all()
		if got := all[len(all)-1]; !containsAll(got.Skipped[0].Detail, []string{c.why}) || got.Config.IPv4.Network.String() != "10.5.0.0/16" || got.Config.Backend.VNI != 1 {
			t.Errorf("%s: %v under %v", name, got.Skipped, got.Config)
		}
		n.put(t, "/config", wide)
		eventually(t, w.last, one)
	}
}

func TestABadConfigurationKeepsTheFormerOneAndIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, detail string
		spoil        func(t *testing.T, n *network)
	}{
		{"not JSON", "not JSON", func(t *testing.T, n *network) { n.put(t, "/config", "{") }},
		{"another network's backend", "udp", func(t *testing.T, n *network) {
			n.put(t, "/config", `{"Network":"10.9.0.0/16","Backend":{"Type":"udp"}}`)
		}},
		{"deleted", "deleted", func(t *testing.T, n *network) { n.remove(t, "/config") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, wide)
			one := n.peer(t, 1, "02:00:00:00:00:01")
			w := n.host(t, "onlooker", "192.0.2.99").watch(t)
			eventually(t, w.last, one)
			c.spoil(t, n)
			eventually(t, w.last, one+"skipped config: value\n")
			all := w.all()
			if s := all[len(all)-1]; s.Config != all[0].Config || !strings.Contains(s.Skipped[0].Detail, c.detail) {
				t.Errorf("configuration %+v, skipped %+v: want the former one, and %q", s.Config, s.Skipped, c.detail)
			}
			two := n.peer(t, 2, "02:00:00:00:00:02")
			eventually(t, w.last, one+two+"skipped config: value\n")
			n.put(t, "/config", wide)
			eventually(t, w.last, one+two)
		})
	}
}

func TestAJunkKeyIsSkippedAndTheRestStand(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	one := n.peer(t, 1, "02:00:00:00:00:01")
	w := n.host(t, "onlooker", "192.0.2.99").watch(t)
	eventually(t, w.last, one)
	n.put(t, "/subnets/junk", "junk")
	eventually(t, w.last, one+"skipped junk: key\n")
	n.put(t, "/subnets/10.5.2.0-24", "junk")
	two := n.peer(t, 3, "02:00:00:00:00:03")
	eventually(t, func() string { return sorted(w.last()) }, sorted(one+two+"skipped junk: key\nskipped 10.5.2.0-24: value\n"))
	n.remove(t, "/subnets/junk", "/subnets/10.5.2.0-24")
	eventually(t, w.last, one+two)
}

// TestAWatchKnowsWhichLeaseWasGivenUp: one that ended by itself may come back.
func TestAWatchKnowsWhichLeaseWasGivenUp(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "onlooker", "192.0.2.99")
	w := h.watch(t)
	n.host(t, "host1", "192.0.2.7").claim(t)
	n.host(t, "host2", "192.0.2.8").claim(t)
	until(t, func() bool { all := w.all(); return len(all) > 0 && len(all[len(all)-1].Leases) == 2 }, w.last)
	_, err := h.store.Release(t.Context(), "host1", "boot of 192.0.2.7")
	must(t, err)
	n.revoke(t, n.leaseOf(t, "/overlayd/nodes/host2"))
	eventually(t, w.last, "")
	all := w.all()
	released := map[string]bool{}
	for _, r := range all[len(all)-1].Held {
		released[r.Node] = r.Released
	}
	if !released["host1"] || released["host2"] {
		t.Errorf("released are %v, want host1 alone", released)
	}
}

// TestTheSameStoreGivesTheSameSnapshot: what is told in another order each time looks like a change.
func TestTheSameStoreGivesTheSameSnapshot(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	for i := range 8 {
		n.put(t, fmt.Sprintf("/subnets/junk%d", i), "")
	}
	h := n.host(t, "onlooker", "192.0.2.99")
	var first string
	for range 5 {
		s, err := h.store.List(t.Context())
		must(t, err)
		if first == "" {
			first = describe(s)
		}
		same(t, describe(s), first)
	}
}

func TestABurstMakesFewSnapshotsAndTheLastIsComplete(t *testing.T) {
	t.Parallel()
	n := serve(t, `{"Network":"10.0.0.0/8"}`)
	w := n.host(t, "onlooker", "192.0.2.99").watch(t)
	until(t, func() bool { return len(w.all()) == 1 }, func() string { return "no first snapshot" })
	n.burst(t, 300)
	until(t, func() bool { all := w.all(); return len(all[len(all)-1].Leases) == 300 }, func() string { return "not complete:\n" + w.last() })
	if made := len(w.all()); made > 100 {
		t.Errorf("300 writes made %d snapshots", made)
	}
}

func TestAllPagesAreListed(t *testing.T) {
	t.Parallel()
	n := serve(t, `{"Network":"10.0.0.0/8"}`)
	n.peers(t, 2500)
	s, err := n.host(t, "onlooker", "192.0.2.99").store.List(t.Context())
	must(t, err)
	if len(s.Leases) != 2500 || len(s.Held) != 2500 || len(s.Skipped) != 0 {
		t.Errorf("listed %d leases, %d records of history and %d skipped: want 2500, 2500 and none", len(s.Leases), len(s.Held), len(s.Skipped))
	}
}

// burst writes leases one by one from ten sides.
func (n *network) burst(t *testing.T, count int) {
	var writers sync.WaitGroup
	for w := range 10 {
		writers.Go(func() {
			for i := w; i < count; i += 10 {
				key, text := manieth(i)
				if _, err := n.plain.Put(t.Context(), prefix+"/subnets/"+key, text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
}

// manieth is one of many leases.
func manieth(i int) (name, text string) {
	return fmt.Sprintf("10.%d.%d.0-24", 1+i/250, i%250), fmt.Sprintf(
		`{"PublicIP":"172.16.%d.%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:%02x:%02x"},"Node":"n%d"}`,
		i/250, 1+i%250, i/250, i%250, i)
}

// peers writes many leases, each with its history.
func (n *network) peers(t *testing.T, count int) {
	t.Helper()
	var ops []clientv3.Op
	for i := range count {
		name, text := manieth(i)
		ops = append(ops, clientv3.OpPut(prefix+"/subnets/"+name, text),
			clientv3.OpPut(prefix+"/overlayd/history/"+name, fmt.Sprintf(`{"node":"n%d","epoch":1}`, i)))
		if len(ops) >= 100 || i == count-1 {
			_, err := n.plain.Txn(t.Context()).Then(ops...).Commit()
			must(t, err)
			ops = nil
		}
	}
}

// TestAWatchAfterAClaimKnowsTheClaimFromTheStart: it goes on from what the claim has read, and that was before it wrote.
func TestAWatchAfterAClaimKnowsTheClaimFromTheStart(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host2", "192.0.2.8").claim(t)
	h := n.host(t, "host1", "192.0.2.7")
	claimed := h.claim(t).Lease()
	w := h.watch(t)
	until(t, func() bool { return len(w.all()) > 0 }, w.last)
	first := w.all()[0]
	if l, ok := first.Lease("host1"); !ok || l.Subnet != claimed.Subnet || len(first.Leases) != 2 {
		t.Errorf("the first snapshot is %v, want %s and the lease of host2", first.Leases, claimed)
	}
}
