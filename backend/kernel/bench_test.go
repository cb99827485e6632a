package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// BenchmarkSteadyPass reads the rows of so many peers, plans and finds nothing to do: with the filter, and with the part of
// it off that has rows for each peer.
func BenchmarkSteadyPass(b *testing.B) {
	for _, guard := range []backend.Guard{backend.GuardFull, backend.GuardOff} {
		for _, peers := range []int{5000, 20000} {
			b.Run(fmt.Sprintf("guard=%s/peers=%d", guard, peers), func(b *testing.B) { steadyPass(b, guard, peers) })
		}
	}
}

func steadyPass(b *testing.B, guard backend.Guard, peers int) {
	plugIn(b)
	k, err := kernel.Open(with(func(o *kernel.Options) { o.Node, o.Guard = "peer0", guard }))
	must(b, err)
	network := crowd(b, peers+1)
	pass(b, k, network)
	b.Cleanup(func() {
		_, err := backend.Remove(k)
		must(b, err)
		must(b, k.Close())
	})
	b.ReportAllocs()
	cpu := burnt(b)
	for b.Loop() {
		h, have, err := k.Read()
		must(b, err)
		if changes := backend.Diff(backend.Plan(h, network), have); len(changes) > 0 {
			b.Fatalf("%d changes: %s", len(changes), changes[0])
		}
	}
	b.ReportMetric(float64((burnt(b)-cpu).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// burnt is the processor time that this process has taken, the kernel's for it included: what a busy machine does not falsify.
func burnt(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReadFilter is the part of a steady pass that reads, with rows of peers in nf_tables alone.
func BenchmarkReadFilter(b *testing.B) {
	plugIn(b)
	k, err := kernel.Open(with(nil))
	must(b, err)
	network := crowd(b, 2)
	network.Leases[0].Node = "h1"
	pass(b, k, network)
	b.Cleanup(func() {
		_, err := backend.Remove(k)
		must(b, err)
		must(b, k.Close())
	})
	const pairs = 10000
	for _, err := range k.Apply(pairsOf(pairs)) {
		must(b, err)
	}
	b.ReportAllocs()
	cpu := burnt(b)
	for b.Loop() {
		_, _, err := k.Read()
		must(b, err)
	}
	b.ReportMetric(float64((burnt(b)-cpu).Nanoseconds())/float64(b.N)/pairs, "cpu-ns/pair")
}

func crowd(b testing.TB, n int) subnet.Snapshot {
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
