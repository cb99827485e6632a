package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// target is a host with everything that nobody may take from it: an uplink that lies inside the pool's neighbourhood, a
// gateway, etcd, and a bridge of somebody else's that lies inside the pool itself.
var target = backend.Host{
	Node: "host1", VXLAN: "overlay.1", Bridge: "ovl0",
	Uplink:    backend.Uplink{Name: "eth0", Addr: netip.MustParseAddr("10.4.0.7"), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/24")}},
	Connected: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/24"), netip.MustParsePrefix("10.5.77.0/24")},
	Gateways:  []netip.Addr{netip.MustParseAddr("10.4.0.1")},
}

// sacred are the addresses that the host needs: its own, the gateway, etcd, others' on its link, one of the bridge's.
var sacred = []netip.Addr{
	netip.MustParseAddr("10.4.0.7"), netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("10.6.0.1"),
	netip.MustParseAddr("10.4.0.200"), netip.MustParseAddr("10.5.77.9"), netip.MustParseAddr("8.8.8.8"),
}

// drawRecord makes a record under subnets/: a subnet near the pool in any length, and a value in which each part is right
// or wrong.
func drawRecord(t *rapid.T) (key, value string) {
	one := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	subnets := []string{"10.5.2.0-24", "10.5.3.0-24", "10.5.77.0-24", "10.5.76.0-23", "10.5.0.0-17", "10.5.128.0-17", "10.5.0.0-16", "10.4.0.0-16", "10.4.0.0-24",
		"10.4.0.0-15", "10.0.0.0-8", "0.0.0.0-0", "128.0.0.0-1", "10.6.0.0-16", "10.6.0.0-24", "10.4.0.1-32", "10.5.77.8-30", "8.8.8.0-24", "169.254.0.0-16", "10.5.9.1-24",
		"10.5.9.0-24&fd00:5::-64", "fd00:5:0:9::-64", "::-0", "junk", ""}
	key = one("subnet", subnets...)
	if rapid.Bool().Draw(t, "any subnet") {
		bits := rapid.IntRange(0, 32).Draw(t, "bits")
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(4, 6).Draw(t, "second")), byte(rapid.IntRange(0, 255).Draw(t, "third")), 0}), bits).Masked()
		key = strings.ReplaceAll(p.String(), "/", "-")
	}
	ip := one("ip", "198.51.100.9", "198.51.100.10", "10.4.0.7", "10.4.0.1", "10.4.0.8", "10.5.2.1", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "fd00::1", "x")
	mac := one("mac", "02:00:00:00:00:09", "02:00:00:00:00:0a", "00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", subnet.VTEPMAC(1, "host1").String(), "x")
	node := one("node", "", "peer", "other", "host1", "a b")
	value = fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"Node":%q}`, ip, mac, node)
	return key, one("value", value, value, value, value, "junk", "{}")
}

// TestNothingInEtcdTakesAnAddressFromTheHost: whatever the records are, no row to a peer covers an address that the host
// needs, or lies outside of the pool, or sends to the host itself.
func TestNothingInEtcdTakesAnAddressFromTheHost(t *testing.T) {
	lab.Need(t)
	const url = "http://127.0.0.1:2479"
	server, err := etcdtest.Serve(t.TempDir(), url)
	must(t, err)
	t.Cleanup(server.Close)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	store, err := etcd.Open(etcd.Options{Endpoints: []string{url}, Prefix: strings.TrimSuffix(below, "/")})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	must(t, store.Configure(t.Context(), `{"Network": "10.5.0.0/16"}`))
	own := subnet.Lease{Node: "host1", Subnet: netip.MustParsePrefix("10.5.1.0/24"), PublicIP: target.Uplink.Addr, MAC: subnet.VTEPMAC(1, "host1"), Backend: "vxlan"}

	ctx, peers := t.Context(), 0
	rapid.Check(t, func(t *rapid.T) {
		ops := map[string]clientv3.Op{}
		for range rapid.IntRange(1, 12).Draw(t, "records") {
			key, value := drawRecord(t)
			ops[key] = clientv3.OpPut(below+"subnets/"+key, value)
		}
		n, err := replaced(ctx, c, store, ops)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range backend.Plan(target, n.With(own)) { // as the daemon does
			peers += harmless(t, e, n.Config.IPv4.Network)
		}
	})
	if peers == 0 {
		t.Error("no peer was ever planned: the test proves nothing")
	}
}

// replaced writes the records in the place of all former ones, and lists the network.
func replaced(ctx context.Context, c *clientv3.Client, store *etcd.Store, ops map[string]clientv3.Op) (subnet.Snapshot, error) {
	if _, err := c.Delete(ctx, below+"subnets/", clientv3.WithPrefix()); err != nil {
		return subnet.Snapshot{}, err
	}
	for _, op := range ops {
		if _, err := c.Do(ctx, op); err != nil {
			return subnet.Snapshot{}, err
		}
	}
	return store.List(ctx)
}

// harmless fails for a row that takes something from the host, and returns 1 for a route to a peer.
func harmless(t *rapid.T, e backend.Entry, pool netip.Prefix) int {
	switch r := e.(type) {
	case backend.Route:
		if !r.Via.IsValid() {
			return 0 // what is in the pool and nobody's
		}
		for _, a := range sacred {
			if r.Dst.Contains(a) {
				t.Fatalf("%s takes %s", r, a)
			}
		}
		if r.Dst.Bits() <= pool.Bits() || !pool.Contains(r.Dst.Addr()) {
			t.Fatalf("%s is not inside of %s", r, pool)
		}
		for _, p := range target.Connected {
			if r.Dst.Overlaps(p) {
				t.Fatalf("%s covers %s, to which the host is connected", r, p)
			}
		}
		return 1
	case backend.FDB:
		if r.Dst == target.Uplink.Addr || !r.MAC.IsUnicast() || r.MAC == subnet.VTEPMAC(1, target.Node) {
			t.Fatalf("%s sends to the host itself or to nobody", r)
		}
	case backend.Neigh:
		if !pool.Contains(r.IP) || r.MAC == subnet.VTEPMAC(1, target.Node) {
			t.Fatalf("%s is no peer's", r)
		}
	}
	return 0
}
