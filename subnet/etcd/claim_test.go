package etcd_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// single is a pool of one subnet.
const single = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.34.0","SubnetMax":"10.5.34.0"}`

func TestARestartKeepsTheSubnetAndReplacesTheEtcdLeases(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "host1", "192.0.2.7")
	first := h.claim(t).Lease()
	before, old := n.dump(t), n.leaseOf(t, "/overlayd/nodes/host1")
	second := h.claim(t).Lease()
	same(t, second.String(), first.String())
	same(t, n.dump(t), before)
	if n.leaseOf(t, "/overlayd/nodes/host1") == old || n.etcdLeases(t) != 2 {
		t.Errorf("the claim hangs on %x as before, or there are not two etcd leases but %d", old, n.etcdLeases(t))
	}
}

func TestTheSameHostIsNotAnother(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, boot, ip string }{
		{"after a reboot", "boot 2", "192.0.2.7"},
		{"with a new address", "boot 1", "192.0.2.8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := serve(t, wide)
			h := n.host(t, "host1", "192.0.2.7")
			h.terms.Boot = "boot 1"
			first := h.claim(t).Lease()
			h.terms.Boot, h.want.PublicIP = c.boot, netip.MustParseAddr(c.ip)
			second := h.claim(t).Lease()
			same(t, second.Subnet.String(), first.Subnet.String())
			if ip := second.PublicIP.String(); ip != c.ip {
				t.Errorf("public address is %s, want %s", ip, c.ip)
			}
			if c.ip != "192.0.2.7" && n.leaseOf(t, "/overlayd/vteps/192.0.2.7") != 0 {
				t.Error("the former address is still taken")
			}
			if n.etcdLeases(t) != 2 {
				t.Errorf("%d etcd leases, want 2", n.etcdLeases(t))
			}
		})
	}
}

func TestAnotherNodeGetsAnotherSubnet(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	a := n.host(t, "host1", "192.0.2.7").claim(t)
	b := n.host(t, "host2", "192.0.2.8").claim(t)
	if a.Lease().Subnet.Overlaps(b.Lease().Subnet) {
		t.Errorf("%s and %s overlap", a.Lease(), b.Lease())
	}
	s, err := n.host(t, "host3", "192.0.2.9").store.List(t.Context())
	must(t, err)
	if len(s.Leases) != 2 || len(s.Skipped) > 0 {
		t.Errorf("listed\n%swant two leases", describe(s))
	}
}

// TestAfterReleaseANodeGetsItsOwnHistoryBack: of a wide pool, the one subnet that its name's hash would not have given.
func TestAfterReleaseANodeGetsItsOwnHistoryBack(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	h := n.host(t, "host1", "192.0.2.7")
	h.claim(t)
	_, err := h.store.Release(t.Context(), "host1", h.terms.Boot)
	must(t, err)
	must(t, h.store.Configure(t.Context(), wide))
	n.host(t, "host2", "192.0.2.8").claim(t)
	same(t, h.claim(t).Lease().Subnet.String(), "10.5.34.0/24")
}

func TestALeaseOfFlannelWithOurAddressIsAdopted(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	grant, err := n.plain.Grant(t.Context(), 86400)
	must(t, err)
	const value = `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:07"}}`
	n.put(t, "/subnets/10.5.78.0-24", `{"PublicIP":"192.0.2.8","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:08"}}`)
	n.put(t, "/subnets/10.5.77.0-24", value, clientv3.WithLease(grant.ID))
	h := n.host(t, "host1", "192.0.2.7")
	same(t, h.claim(t).Lease().Subnet.String(), "10.5.77.0/24")
	s, err := h.store.List(t.Context())
	must(t, err)
	same(t, describe(s), "10.5.78.0/24 of 192.0.2.8 via 192.0.2.8 mac 5e:1f:00:00:00:08\n10.5.77.0/24 of host1 via 192.0.2.7 mac "+h.want.MAC.String()+"\n")
	if n.etcdLeases(t) != 2 {
		t.Errorf("%d etcd leases, want ours and not flannel's", n.etcdLeases(t))
	}
}

func TestWithoutAConfigurationAClaimWaitsAndNamesTheCommand(t *testing.T) {
	t.Parallel()
	n := serve(t, "")
	h := n.host(t, "host1", "192.0.2.7")
	a := h.claiming(t)
	h.told.await(t, etcd.ErrNoConfig, prefix+"/config", "overlayd config set")
	a.waits(t)
	must(t, h.store.Configure(t.Context(), single))
	c := a.await(t)
	same(t, c.Lease().Subnet.String(), "10.5.34.0/24")
	same(t, c.Config().IPv4.Network.String(), "10.5.0.0/16")
	h.told.awaitEnd(t)
}

func TestABadConfigurationIsToldWithItsKey(t *testing.T) {
	t.Parallel()
	n := serve(t, `{"Network":"10.5.0.0/33"}`)
	h := n.host(t, "host1", "192.0.2.7")
	a := h.claiming(t)
	h.told.await(t, nil, prefix+"/config", "Network", "10.5.0.0/33")
	must(t, h.store.Configure(t.Context(), single))
	a.await(t)
}

func TestAnExhaustedPoolIsToldAndAClaimSucceedsOnceOneIsReleased(t *testing.T) {
	t.Parallel()
	n := serve(t, single)
	first, second := n.host(t, "host1", "192.0.2.7"), n.host(t, "host2", "192.0.2.8")
	first.claim(t)
	a := second.claiming(t)
	second.told.await(t, subnet.ErrNoSpace, "1 leases", "release one or enlarge the pool")
	a.waits(t)
	_, err := first.store.Release(t.Context(), "host1", first.terms.Boot)
	must(t, err)
	same(t, a.await(t).Lease().Subnet.String(), "10.5.34.0/24")
	second.told.awaitEnd(t)
}

// TestTheDeadlineIsBeforeTheEndOfTheLease: it is counted from before the request, and leaves a margin.
func TestTheDeadlineIsBeforeTheEndOfTheLease(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	h := n.host(t, "host1", "192.0.2.7")
	h.terms.Now = func() time.Duration { return 1000 * time.Hour }
	for ttl, want := range map[time.Duration]time.Duration{
		day:             1000*time.Hour + day - 864*time.Second - 10*time.Second,
		5 * time.Second: 1000*time.Hour + 5*time.Second - 550*time.Millisecond,
	} {
		h.terms.TTL = ttl
		if got := h.claim(t).Deadline(); got != want {
			t.Errorf("lease of %s: deadline %s, want %s", ttl, got, want)
		}
	}
}

func TestAClaimReturnsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, told string
		start      func(t *testing.T) *host
	}{
		{"without a configuration", "overlayd config set", func(t *testing.T) *host { return serve(t, "").host(t, "host1", "192.0.2.7") }},
		{"without a free subnet", "no free subnet", func(t *testing.T) *host {
			n := serve(t, single)
			n.host(t, "host1", "192.0.2.7").claim(t)
			return n.host(t, "host2", "192.0.2.8")
		}},
		{"without a server", "connection refused", func(t *testing.T) *host { return hostAt(t, "http://"+freeAddr(t), prefix, "host1", "192.0.2.7") }},
		{"without an answer", "accepts connections and does not answer", func(t *testing.T) *host {
			c := lay(t, serve(t, wide).url)
			c.mute(t)
			return hostAt(t, c.url, prefix, "host1", "192.0.2.7")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := c.start(t)
			a := h.claiming(t)
			h.told.await(t, nil, c.told)
			a.cancel()
			select {
			case <-a.done:
			case <-time.After(2 * time.Second):
				t.Fatal("no end within 2 s")
			}
			if !errors.Is(a.err, context.Canceled) || a.claim != nil {
				t.Errorf("ended with %v, want the context's error", a.err)
			}
		})
	}
}
