package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// BenchmarkSteadyPass reads 5,000 peers' rows, plans and finds nothing to do.
func BenchmarkSteadyPass(b *testing.B) {
	plugIn(b)
	k, err := kernel.Open(kernel.Options{Node: "peer0", VXLAN: "overlay.1", Bridge: "ovl0", Choice: backend.Choice{Ifaces: []string{"eth0"}}})
	must(b, err)
	defer k.Close()
	network := crowd(b, 5001)
	h, have, err := k.Read()
	must(b, err)
	for range 2 {
		for _, err := range k.Apply(backend.Diff(backend.Plan(h, network), have)) {
			must(b, err)
		}
		h, have, err = k.Read()
		must(b, err)
	}
	b.ReportAllocs()
	for b.Loop() {
		h, have, err := k.Read()
		must(b, err)
		if changes := backend.Diff(backend.Plan(h, network), have); len(changes) > 0 {
			b.Fatalf("%d changes: %s", len(changes), changes[0])
		}
	}
}

func crowd(b *testing.B, n int) subnet.Snapshot {
	c, err := subnet.ParseConfig([]byte(`{"Network": "10.0.0.0/8"}`))
	must(b, err)
	var leases []subnet.Lease
	for i := range n {
		name := fmt.Sprintf("peer%d", i)
		leases = append(leases, subnet.Lease{
			Node: name, Subnet: c.IPv4.At(uint64(i + 1)), PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}),
			MAC: subnet.VTEPMAC(1, name), Backend: "vxlan", Created: int64(i + 1),
		})
	}
	return subnet.Vet(1, c, leases, nil, nil)
}
