package etcd_test

import (
	"errors"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet/etcd"
)

func TestReleaseLeavesTheHistoryAndNothingElse(t *testing.T) {
	t.Parallel()
	const dual = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.34.0","SubnetMax":"10.5.34.0",` +
		`"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:22::","IPv6SubnetMax":"fd00:5:0:22::"}`
	const four = prefix + `/overlayd/history/10.5.34.0-24 {"node":"host1","epoch":1,"released":true}` + "\n"
	const six = prefix + `/overlayd/history/fd00:5:0:22::-64 {"node":"host1","epoch":1,"released":true}` + "\n"
	for _, c := range []struct{ name, config, history string }{
		{"IPv4", single, four},
		{"dual stack", dual, four + six},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, c.config)
			h := n.host(t, "host1", "192.0.2.7")
			held := h.claim(t).Lease()
			from := n.put(t, "/mark", "")
			n.remove(t, "/mark")
			released, err := h.store.Release(t.Context(), "host1", h.terms.Boot)
			must(t, err)
			same(t, released.String(), held.String())
			want := prefix + "/config " + c.config + "\n" + c.history
			same(t, n.dump(t), want)
			if n.etcdLeases(t) != 0 {
				t.Errorf("%d etcd leases are left", n.etcdLeases(t))
			}

			for _, e := range n.events(t, from+2) {
				if e.Kv.ModRevision != from+2 {
					t.Errorf("%s %s is not of the same transaction", e.Type, e.Kv.Key)
				}
			}
			n.remove(t, "/last")

			again, err := h.store.Release(t.Context(), "host1", h.terms.Boot)
			if err != nil || again.Node != "" {
				t.Errorf("released again: %s, %v: want nothing and no error", again, err)
			}
			same(t, n.dump(t), want)
		})
	}
}

func TestReleaseOfWhatIsNotThereIsNoError(t *testing.T) {
	t.Parallel()
	n := serve(t, "")
	h := n.host(t, "host1", "192.0.2.7")
	if l, err := h.store.Release(t.Context(), "host1", h.terms.Boot); err != nil || l.Node != "" {
		t.Errorf("without a configuration: released %s, %v", l, err)
	}
	must(t, h.store.Configure(t.Context(), wide))
	n.host(t, "host2", "192.0.2.8").claim(t)
	before := n.dump(t)
	if l, err := h.store.Release(t.Context(), "host1", h.terms.Boot); err != nil || l.Node != "" {
		t.Errorf("without a lease: released %s, %v", l, err)
	}
	same(t, n.dump(t), before)
}

func TestReleaseLeavesOtherNodesAlone(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host2", "192.0.2.8").claim(t)
	before := n.dump(t)
	h := n.host(t, "host1", "192.0.2.7")
	l := h.claim(t).Lease()
	_, err := h.store.Release(t.Context(), "host1", h.terms.Boot)
	must(t, err)
	n.remove(t, "/overlayd/history/"+l.Subnet.Addr().String()+"-24")
	same(t, n.dump(t), before)
}

// TestReleaseRemovesALeaseThatTheNetworkNoLongerAdmits: an uninstalled host leaves nothing, whatever the pool is now.
func TestReleaseRemovesALeaseThatTheNetworkNoLongerAdmits(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "host1", "192.0.2.7")
	h.claim(t)
	must(t, h.store.ConfigureAnyway(t.Context(), `{"Network":"10.6.0.0/16"}`))
	_, err := h.store.Release(t.Context(), "host1", h.terms.Boot)
	must(t, err)
	answer, err := n.plain.Get(t.Context(), prefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(t, err)
	if len(answer.Kvs) != 0 {
		t.Errorf("left: %v", answer.Kvs)
	}
}

// TestTheEpochOfASubnetNeverDecreases: it tells how often the subnet changed hands.
func TestTheEpochOfASubnetNeverDecreases(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	history := func() string { return n.textOf(t, "/overlayd/history/10.5.34.0-24") }
	one, two := n.host(t, "host1", "192.0.2.7"), n.host(t, "host2", "192.0.2.8")
	for _, step := range []struct {
		h       *host
		release bool
		want    string
	}{
		{one, false, `{"node":"host1","epoch":1}`},
		{one, false, `{"node":"host1","epoch":1}`},
		{one, true, `{"node":"host1","epoch":1,"released":true}`},
		{two, false, `{"node":"host2","epoch":2}`},
		{two, true, `{"node":"host2","epoch":2,"released":true}`},
		{one, false, `{"node":"host1","epoch":3}`},
		{one, true, `{"node":"host1","epoch":3,"released":true}`},
		{one, false, `{"node":"host1","epoch":4}`},
	} {
		if step.release {
			_, err := step.h.store.Release(t.Context(), step.h.want.Node, step.h.terms.Boot)
			must(t, err)
		} else {
			step.h.claim(t)
		}
		same(t, history(), step.want)
	}
}

// TestTheLeaseOfALivingHostIsNotReleasedByAnotherOfItsName: uninstalling a clone must not cut the original off.
func TestTheLeaseOfALivingHostIsNotReleasedByAnotherOfItsName(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "host1", "192.0.2.7")
	h.claim(t)
	before := n.dump(t)
	if _, err := h.store.Release(t.Context(), "host1", "another boot"); !errors.Is(err, etcd.ErrAlive) {
		t.Errorf("released with %v, want %v", err, etcd.ErrAlive)
	}
	same(t, n.dump(t), before)
}
