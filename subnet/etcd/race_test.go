package etcd_test

import (
	"errors"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

func TestTwentyClaimantsOfTwentySubnetsAllGetOne(t *testing.T) {
	t.Parallel()
	n := serve(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0"}`)
	var attempts []*attempt
	for i := range 20 {
		attempts = append(attempts, n.host(t, fmt.Sprintf("host%d", i), fmt.Sprintf("192.0.2.%d", i+1)).claiming(t))
	}
	owners := map[string]string{}
	for _, a := range attempts {
		l := a.await(t).Lease()
		if other, taken := owners[l.Subnet.String()]; taken {
			t.Errorf("%s and %s both have %s", other, l.Node, l.Subnet)
		}
		owners[l.Subnet.String()] = l.Node
	}
	s, err := n.host(t, "onlooker", "192.0.2.99").store.List(t.Context())
	must(t, err)
	if len(s.Leases) != 20 || len(s.Skipped) > 0 || n.etcdLeases(t) != 40 {
		t.Errorf("%d etcd leases, and listed\n%swant 40, and 20 leases", n.etcdLeases(t), describe(s))
	}
	for _, l := range s.Leases {
		if owners[l.Subnet.String()] != l.Node {
			t.Errorf("%s believes that it has %s, the store says %s", owners[l.Subnet.String()], l.Subnet, l.Node)
		}
	}
}

func TestTwoClaimantsOfTheLastTwoSubnetsNeverGetTheSame(t *testing.T) {
	t.Parallel()
	n := serve(t, "")
	const groups, each = 4, 50 // 200 races
	for group := range groups {
		t.Run(fmt.Sprint(group), func(t *testing.T) {
			t.Parallel()
			for i := range each {
				race(t, n, group*each+i)
			}
		})
	}
}

// race lets two hosts claim the two subnets of the ith network at once. Neither ends without a lease, nor with the other's.
func race(t *testing.T, n *network, i int) {
	t.Helper()
	p := fmt.Sprintf("/network%d", i)
	_, err := n.plain.Put(t.Context(), p+"/config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`)
	must(t, err)
	// In half of the networks the two names hash to the same subnet.
	a := hostAt(t, n.url, p, fmt.Sprintf("a%d", i), "192.0.2.7")
	b := hostAt(t, n.url, p, fmt.Sprintf("b%d", i), "192.0.2.8")
	first, second := a.claiming(t), b.claiming(t)
	x, y := first.await(t).Lease(), second.await(t).Lease()
	s, err := a.store.List(t.Context())
	must(t, err)
	if x.Subnet == y.Subnet || len(s.Leases) != 2 || len(s.Held) != 2 {
		t.Fatalf("network %d: %s and %s, and listed\n%s", i, x, y, describe(s))
	}
	must(t, errors.Join(a.store.Close(), b.store.Close()))
}

func TestOfTwoHostsThatShareANameOrAnAddressOneGetsALease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, node, ip string
		refusal        error
	}{
		{"a name", "host1", "192.0.2.8", etcd.ErrNameTaken},
		{"an address", "host2", "192.0.2.7", etcd.ErrAddressTaken},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, "")
			for i := range 20 {
				p := fmt.Sprintf("/network%d", i)
				_, err := n.plain.Put(t.Context(), p+"/config", wide)
				must(t, err)
				a, b := hostAt(t, n.url, p, "host1", "192.0.2.7"), hostAt(t, n.url, p, c.node, c.ip)
				first, second := a.claiming(t), b.claiming(t)
				until(t, func() bool { return first.ended() || second.ended() }, func() string { return "neither gets a lease" })
				loser, attempt := a, first
				if first.ended() {
					loser, attempt = b, second
				}
				loser.told.await(t, c.refusal)
				attempt.waits(t)
				attempt.cancel()
				s, err := a.store.List(t.Context())
				must(t, err)
				if len(s.Leases) != 1 || len(s.Skipped) != 0 {
					t.Fatalf("network %d: listed\n%s", i, describe(s))
				}
			}
		})
	}
}

// TestNoLeaseIsTakenUnderAFormerConfiguration: while an administrator changes the pool to and fro, every lease lies in the
// pool that was in force at the very revision of the lease.
func TestNoLeaseIsTakenUnderAFormerConfiguration(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	pools := []string{`{"Network":"10.6.0.0/16"}`, wide}
	for i := range 10 {
		h := n.host(t, fmt.Sprintf("host%d", i), fmt.Sprintf("192.0.2.%d", i+1))
		a := h.claiming(t)
		for k := range 20 { // not for ever: each change sends the claimant back to the start
			n.put(t, "/config", pools[k%2])
		}
		l := a.await(t).Lease()
		key := n.get(t, "/subnets/"+l.Subnet.Addr().String()+"-24")
		config, err := n.plain.Get(t.Context(), prefix+"/config", clientv3.WithRev(key.GetModRevision()))
		must(t, err)
		c, err := subnet.ParseConfig(config.Kvs[0].Value)
		must(t, err)
		if !c.IPv4.Contains(l.Subnet) {
			t.Errorf("%s was taken when the pool was %s", l, c.IPv4.Network)
		}
	}
}
