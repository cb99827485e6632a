package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// keeping is a Keep under way.
type keeping struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error

	mu        sync.Mutex
	deadlines []time.Duration // after each renewal
}

func keep(t *testing.T, c *etcd.Claim) *keeping {
	ctx, cancel := context.WithCancel(t.Context())
	k := &keeping{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.err = c.Keep(ctx, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.deadlines = append(k.deadlines, c.Deadline())
		})
	}()
	t.Cleanup(func() { cancel(); <-k.done })
	return k
}

func (k *keeping) renewals() []time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]time.Duration(nil), k.deadlines...)
}

func (k *keeping) ended() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// await waits for the end of Keep and returns its error.
func (k *keeping) await(t *testing.T, within time.Duration) error {
	t.Helper()
	select {
	case <-k.done:
		return k.err
	case <-time.After(within):
		t.Fatalf("Keep goes on after %s", within)
		return nil
	}
}

// shortTTL is of a lease that is renewed every few seconds, and does not end because a busy machine starves a test for some.
const shortTTL = 2 * etcd.MinTTL

// short makes a host whose lease is short, so that it is renewed every few seconds.
func (n *network) short(t *testing.T) *host {
	t.Helper()
	h := n.host(t, "host1", "192.0.2.7")
	h.terms.TTL = shortTTL
	return h
}

// TestRenewingWritesNoKey: 5,000 hosts must not wake 5,000 watchers.
func TestRenewingWritesNoKey(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	c := n.short(t).claim(t)
	first := c.Deadline()
	before, from := n.dump(t), n.put(t, "/mark", "")
	n.remove(t, "/mark")
	k := keep(t, c)
	// Until both etcd leases would have ended, had they not been renewed.
	end := now() + shortTTL + time.Second
	until(t, func() bool { return now() > end && len(k.renewals()) >= 3 }, func() string { return fmt.Sprint(k.renewals()) })
	for i, d := range k.renewals() {
		if d <= first {
			t.Errorf("deadline %d is %s, after %s", i, d, first)
		}
		first = d
	}
	for _, e := range n.events(t, from+2) {
		t.Errorf("renewing wrote %s %s", e.Type, e.Kv.Key)
	}
	n.remove(t, "/last")
	same(t, n.dump(t), before)
}

func TestKeepReturnsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	k := keep(t, n.short(t).claim(t))
	k.cancel()
	if err := k.await(t, 2*time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v, want the context's error", err)
	}
}

func TestWhatEtcdLostIsTakenBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		lose func(t *testing.T, n *network, l subnet.Lease)
	}{
		{"the claim's etcd lease", func(t *testing.T, n *network, _ subnet.Lease) {
			n.revoke(t, n.leaseOf(t, "/overlayd/nodes/host1"))
		}},
		{"the sign of life", func(t *testing.T, n *network, _ subnet.Lease) {
			n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
		}},
		{"the lease key alone", func(t *testing.T, n *network, l subnet.Lease) {
			n.remove(t, "/subnets/"+l.Subnet.Addr().String()+"-24")
		}},
		{"all keys but the configuration", func(t *testing.T, n *network, _ subnet.Lease) {
			_, err := n.plain.Txn(t.Context()).Then(
				clientv3.OpDelete(prefix+"/subnets/", clientv3.WithPrefix()), clientv3.OpDelete(prefix+"/overlayd/", clientv3.WithPrefix()),
			).Commit()
			must(t, err)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, single)
			h := n.short(t)
			held := h.claim(t)
			must(t, h.store.Configure(t.Context(), wide)) // its own subnet is not the one that a newcomer of its name would get
			before, was := n.dump(t), held.Lease()
			k := keep(t, held)
			c.lose(t, n, was)
			eventually(t, func() string { return n.dump(t) }, before)
			same(t, held.Lease().String(), was.String())
			renewed := len(k.renewals())
			until(t, func() bool { return len(k.renewals()) > renewed+1 }, func() string { return "no renewal after the loss" })
			same(t, n.dump(t), before)
		})
	}
}

// TestALeaseTakenBackLeavesNoEtcdLease: the keys were deleted, not the etcd leases that they hung on.
func TestALeaseTakenBackLeavesNoEtcdLease(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	h := n.short(t)
	c := h.claim(t)
	old := n.leaseOf(t, "/overlayd/nodes/host1")
	n.remove(t, "/subnets/10.5.34.0-24", "/overlayd/nodes/host1", "/overlayd/vteps/192.0.2.7", "/overlayd/alive/host1")
	keep(t, c)
	until(t, func() bool { return n.leaseOf(t, "/overlayd/nodes/host1") != 0 }, func() string { return "not taken back" })
	// Renewed a third of its time ago at the latest, it would not have expired yet.
	untilWithin(t, shortTTL/2, func() bool { return n.etcdLeases(t) == 2 }, func() string {
		return fmt.Sprintf("%d etcd leases, want 2 and %x gone: with the usual TTL it stays for a day", n.etcdLeases(t), old)
	})
}

func TestKeepEndsWhenSomebodyElseHasTheSubnet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, key string }{
		{"the same key", "/subnets/10.5.34.0-24"},
		{"a key that covers it", "/subnets/10.5.34.0-23"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, single)
			held := n.short(t).claim(t)
			n.remove(t, "/subnets/10.5.34.0-24")
			n.put(t, c.key, `{"PublicIP":"192.0.2.8","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:08"}}`)
			before := n.textOf(t, c.key)
			if err := keep(t, held).await(t, patience); !errors.Is(err, etcd.ErrLost) {
				t.Errorf("ended with %v, want %v", err, etcd.ErrLost)
			}
			same(t, n.textOf(t, c.key), before)
		})
	}
}

// TestAYoungerLeaseDoesNotTakeAHeldSubnet: every host goes by the older of two that overlap, and so does its holder when it
// renews what it lost in a short outage.
func TestAYoungerLeaseDoesNotTakeAHeldSubnet(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	h := n.short(t)
	k := keep(t, h.claim(t))
	n.put(t, "/subnets/10.5.34.0-23", `{"PublicIP":"192.0.2.8","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:08"}}`)
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	until(t, func() bool { return n.leaseOf(t, "/overlayd/alive/host1") != 0 || k.ended() }, func() string { return "no sign of life" })
	if k.ended() {
		t.Fatalf("ended with %v", k.err)
	}
	s, err := h.store.List(t.Context())
	must(t, err)
	same(t, describe(s), "10.5.34.0/24 of host1 via 192.0.2.7 mac "+h.want.MAC.String()+"\nskipped 10.5.34.0/23: overlap\n")
}

// TestKeepEndsWhenAnotherHostOfOurNameHasTheSubnet: while this host was cut off, the other one took over the name and with
// it the lease. Now both would serve the same subnet.
func TestKeepEndsWhenAnotherHostOfOurNameHasTheSubnet(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	held := n.short(t).claim(t)
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	n.host(t, "host1", "192.0.2.8").claim(t)
	before := n.dump(t)
	if err := keep(t, held).await(t, patience); !errors.Is(err, etcd.ErrLost) {
		t.Errorf("ended with %v, want %v", err, etcd.ErrLost)
	}
	same(t, n.dump(t), before)
}

// TestKeepEndsWhenTheNextHolderOfOurAddressHasTheSubnet: likewise, under another name.
func TestKeepEndsWhenTheNextHolderOfOurAddressHasTheSubnet(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	held := n.short(t).claim(t)
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	n.host(t, "host2", "192.0.2.7").claim(t)
	before := n.dump(t)
	if err := keep(t, held).await(t, patience); !errors.Is(err, etcd.ErrLost) {
		t.Errorf("ended with %v, want %v", err, etcd.ErrLost)
	}
	same(t, n.dump(t), before)
}

func TestAHostThatMovesToAnotherAddressKeepsItsSubnet(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	c := n.short(t).claim(t)
	before := n.dump(t)
	k := keep(t, c)
	if c.Readdress(netip.MustParseAddr("192.0.2.7")) {
		t.Error("the address that it has is news")
	}
	if ip := netip.MustParseAddr("192.0.2.8"); !c.Readdress(ip) || c.Readdress(ip) {
		t.Error("another address is no news, or is news twice")
	}
	after := strings.ReplaceAll(before, `"publicIP":"192.0.2.7"`, `"publicIP":"192.0.2.8"`)
	after = strings.ReplaceAll(after, `"PublicIP":"192.0.2.7"`, `"PublicIP":"192.0.2.8"`)
	after = strings.ReplaceAll(after, "/vteps/192.0.2.7", "/vteps/192.0.2.8")
	eventually(t, func() string { return n.dump(t) }, after)
	eventually(t, func() string { return c.Lease().String() }, "10.5.34.0/24 of host1 via 192.0.2.8")
	renewed := len(k.renewals())
	until(t, func() bool { return len(k.renewals()) > renewed+1 }, func() string { return "no renewal after the move" })
	same(t, n.dump(t), after)
}

// TestAHostThatCannotHaveItsNewAddressKeepsItsLease: another living host has that address. Without renewal, name and
// subnet would be anybody's after a while.
func TestAHostThatCannotHaveItsNewAddressKeepsItsLease(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host2", "192.0.2.8").claim(t)
	h := n.host(t, "host1", "192.0.2.7")
	h.terms.TTL = 8 * time.Second
	c := h.claim(t)
	before := n.dump(t)
	keep(t, c)
	c.Readdress(netip.MustParseAddr("192.0.2.8"))
	h.told.await(t, etcd.ErrAddressTaken, "192.0.2.8", `"host2"`)
	end := now() + h.terms.TTL + 2*time.Second
	until(t, func() bool { return now() > end || n.leaseOf(t, "/overlayd/nodes/host1") == 0 }, func() string { return "" })
	same(t, n.dump(t), before)
	c.Readdress(netip.MustParseAddr("192.0.2.7"))
	h.told.awaitEnd(t)
	eventually(t, func() string { return n.dump(t) }, before)
}

// TestATroubleOfKeepIsToldToBeOver: the store was wiped with its configuration, and restored.
func TestATroubleOfKeepIsToldToBeOver(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	h := n.short(t)
	c := h.claim(t)
	_, err := n.plain.Delete(t.Context(), prefix, clientv3.WithPrefix())
	must(t, err)
	keep(t, c)
	h.told.await(t, etcd.ErrNoConfig, "overlayd config set")
	n.put(t, "/config", single)
	until(t, func() bool { return n.leaseOf(t, "/subnets/10.5.34.0-24") != 0 }, func() string { return "not taken back" })
	h.told.awaitEnd(t)
}

// TestKeepOutlivesAnOutage: the lease ends while etcd cannot be reached, and is taken back.
func TestKeepOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	line := lay(t, n.url)
	h := hostAt(t, line.url, prefix, "host1", "192.0.2.7")
	h.terms.TTL = shortTTL
	c := h.claim(t)
	before := n.dump(t)
	keep(t, c)
	line.cut()
	h.told.await(t, nil, line.url, "connection refused")
	until(t, func() bool { return n.leaseOf(t, "/subnets/10.5.34.0-24") == 0 }, func() string { return "the lease does not end" })
	if c.Deadline() > now() {
		t.Error("the lease ended before its deadline")
	}
	line.mend(t)
	eventually(t, func() string { return n.dump(t) }, before)
	h.told.awaitEnd(t)
}
