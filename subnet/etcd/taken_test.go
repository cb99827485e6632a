package etcd_test

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet/etcd"
)

func TestASecondLivingHostOfOneNameIsRefusedUntilTheFirstIsGone(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	first := n.host(t, "host1", "192.0.2.7")
	lease := first.claim(t).Lease()
	before := n.dump(t)

	second := n.host(t, "host1", "192.0.2.8")
	a := second.claiming(t)
	second.told.await(t, etcd.ErrNameTaken, `"host1"`, "192.0.2.7", "192.0.2.8", "--node-name")
	a.waits(t)
	same(t, n.dump(t), before)

	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	same(t, a.await(t).Lease().String(), strings.Replace(lease.String(), "192.0.2.7", "192.0.2.8", 1))
	same(t, n.dump(t), strings.ReplaceAll(before, "192.0.2.7", "192.0.2.8"))
	second.told.awaitEnd(t)
	if n.etcdLeases(t) != 2 {
		t.Errorf("%d etcd leases, want those of the second host", n.etcdLeases(t))
	}
}

func TestASecondLivingHostOfOneAddressIsRefusedUntilTheFirstIsGone(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host1", "192.0.2.7").claim(t)
	before := n.dump(t)

	second := n.host(t, "host2", "192.0.2.7")
	a := second.claiming(t)
	second.told.await(t, etcd.ErrAddressTaken, "192.0.2.7", `"host1"`, `"host2"`, "--public-ip")
	a.waits(t)
	same(t, n.dump(t), before)

	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	lease := a.await(t).Lease()
	s, err := second.store.List(t.Context())
	must(t, err)
	same(t, describe(s), fmt.Sprintf("%s mac %s\n", lease, second.want.MAC))
	same(t, n.textOf(t, "/overlayd/vteps/192.0.2.7"), "host2")
	same(t, n.textOf(t, "/overlayd/nodes/host1"), "")
}

// TestTakingAnAddressOverRemovesItsFormerLeaseInTheSameTransaction: at no revision have two leases the address.
func TestTakingAnAddressOverRemovesItsFormerLeaseInTheSameTransaction(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	former := n.host(t, "host1", "192.0.2.7").claim(t).Lease().Subnet
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	from := n.put(t, "/mark", "")

	lease := n.host(t, "host2", "192.0.2.7").claim(t).Lease().Subnet
	var changes []string
	for _, e := range n.events(t, from+1) {
		if e.Kv.ModRevision == n.get(t, "/overlayd/nodes/host2").GetModRevision() {
			changes = append(changes, fmt.Sprintf("%s %s", e.Type, strings.TrimPrefix(string(e.Kv.Key), prefix)))
		}
	}
	for _, want := range []string{
		fmt.Sprintf("DELETE /subnets/%s-24", former.Addr()), "DELETE /overlayd/nodes/host1",
		fmt.Sprintf("PUT /subnets/%s-24", lease.Addr()), "PUT /overlayd/nodes/host2", "PUT /overlayd/vteps/192.0.2.7",
	} {
		if !strings.Contains(strings.Join(changes, "\n")+"\n", want+"\n") {
			t.Errorf("in one revision:\n%s\nwant among them: %s", strings.Join(changes, "\n"), want)
		}
	}
}

// TestAnAddressIsTakenOverInAFullPool: the lease that goes makes the room for the one that comes. A host that is given
// another name would else be without a subnet until its former lease ends, a day later.
func TestAnAddressIsTakenOverInAFullPool(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	n.host(t, "host1", "192.0.2.7").claim(t)
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	h := n.host(t, "host2", "192.0.2.7")
	a := h.claiming(t)
	until(t, func() bool { return a.ended() || len(h.told.all()) > 0 }, func() string { return "neither a claim nor a trouble" })
	if !a.ended() {
		t.Fatalf("told %v\nwant 10.5.34.0/24, that the gone holder of the address had", h.told.all())
	}
	same(t, a.await(t).Lease().Subnet.String(), "10.5.34.0/24")
	if n.etcdLeases(t) != 2 {
		t.Errorf("%d etcd leases, want those of host2", n.etcdLeases(t))
	}
}

// TestOnlyALeaseAtTheAddressGoesWithIt: the record of an address that host1 had once outlived its renumbering. Host1 is
// stopped; its pods run, at its present address.
func TestOnlyALeaseAtTheAddressGoesWithIt(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	first := n.host(t, "host1", "192.0.2.7")
	one := first.claim(t).Lease()
	n.put(t, "/overlayd/vteps/192.0.2.9", "host1")
	n.revoke(t, n.leaseOf(t, "/overlayd/alive/host1"))
	second := n.host(t, "host2", "192.0.2.9")
	two := second.claim(t).Lease()
	s, err := first.store.List(t.Context())
	must(t, err)
	same(t, describe(s), fmt.Sprintf("%s mac %s\n%s mac %s\n", one, first.want.MAC, two, second.want.MAC))
	same(t, n.textOf(t, "/overlayd/nodes/host1"), one.Subnet.Addr().String()+"-24")
}

// TestANodeHasOneLeaseWhateverTheConfigurationWasBefore: a lease that the network no longer admits would stay for a day,
// skipped by every host, and clash with the new one when the configuration comes back.
func TestANodeHasOneLeaseWhateverTheConfigurationWasBefore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, config string }{
		{"another pool", `{"Network":"10.6.0.0/16"}`},
		{"another VNI", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`},
		{"a second family", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, wide)
			h := n.host(t, "host1", "192.0.2.7")
			former := h.claim(t).Lease()
			must(t, h.store.ConfigureAnyway(t.Context(), c.config))
			l := h.claim(t).Lease()
			answer, err := n.plain.Get(t.Context(), prefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
			must(t, err)
			if len(answer.Kvs) != 1 || n.etcdLeases(t) != 2 {
				t.Errorf("host1 has the leases %v on %d etcd leases, want one on two", answer.Kvs, n.etcdLeases(t))
			}
			if strings.Contains(c.config, "10.5.0.0/16") && l.Subnet != former.Subnet {
				t.Errorf("host1 had %s and now has %s: its pods keep their addresses", former.Subnet, l.Subnet)
			}
		})
	}
}

// TestARefusedClaimLeavesNothing: every attempt makes two etcd leases, and gives them back.
func TestARefusedClaimLeavesNothing(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	n.host(t, "host1", "192.0.2.7").claim(t)
	before := n.dump(t)
	for _, h := range []*host{n.host(t, "host1", "192.0.2.8"), n.host(t, "host2", "192.0.2.7"), n.host(t, "host3", "192.0.2.9")} {
		a := h.claiming(t)
		until(t, func() bool { return len(h.told.all()) >= 2 }, func() string { return fmt.Sprint(h.told.all()) })
		a.cancel()
		<-a.done
	}
	same(t, n.dump(t), before)
	if n.etcdLeases(t) != 2 {
		t.Errorf("%d etcd leases, want those of host1", n.etcdLeases(t))
	}
}
