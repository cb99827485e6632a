package kernel_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

// pairsOf makes pairs of peers that no plan of the suite's network has.
func pairsOf(n int) []backend.Change {
	var all []backend.Change
	for i := range n {
		inner := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + byte(i>>8), byte(i), 0}), 24)
		all = append(all, backend.Change{New: backend.Pair{Set: backend.SetSubnets, Inner: inner, Outer: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}})
	}
	return all
}

// undo turns changes that make rows into those that remove them.
func undo(changes []backend.Change) []backend.Change {
	var all []backend.Change
	for _, c := range changes {
		all = append(all, backend.Change{Old: c.New})
	}
	return all
}

// TestManyPairsAreOneTransaction.
func TestManyPairsAreOneTransaction(t *testing.T) {
	if lab.Rootless() {
		t.Skip("not root: events of 10,000 elements do not fit the buffer of a user's socket")
	}
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	_, before, err := k.Read()
	must(t, err)
	events := listen(t)
	all := pairsOf(10000)
	for _, step := range []struct {
		changes []backend.Change
		rows    int
	}{{all, 10000}, {undo(all[:2000]), 8000}, {all[:2000], 10000}} {
		began := time.Now()
		for i, err := range k.Apply(step.changes) {
			if err != nil {
				t.Fatalf("%s: %v", step.changes[i], err)
			}
		}
		t.Logf("%d changes took %s", len(step.changes), time.Since(began))
		if got := strings.Count(events.drain(), "generation"); got != 1 {
			t.Errorf("%d transactions, want one", got)
		}
		_, have, err := k.Read()
		must(t, err)
		if got := len(have) - len(before); got != step.rows {
			t.Errorf("%d rows, want %d", got, step.rows)
		}
	}
	began := time.Now()
	_, err = backend.Remove(k)
	must(t, err)
	t.Logf("uninstalling took %s", time.Since(began))
	// Removed one by one, in a transaction that removes their table too, 10,000 elements take the kernel minutes.
	if told := events.drain(); strings.Contains(told, "delete element") || !strings.Contains(told, "delete table inet overlayd") {
		t.Errorf("elements are removed that go with their table anyway:\n%.300s", told)
	}
}

// TestARefusedElementKeepsNoOtherOut: whose place somebody else's element has, or whose set is missing.
func TestARefusedElementKeepsNoOtherOut(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	for _, c := range []struct {
		claim   string
		refused []int
	}{
		{"the first", []int{0}},
		{"the last", []int{1999}},
		{"in the middle", []int{1250}},
		{"some", []int{17, 18, 1250, 1777}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			_, before, err := k.Read()
			must(t, err)
			changes := pairsOf(2000)
			for _, i := range c.refused {
				changes[i].New = backend.Member{Set: "nowhere", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
			}
			began := time.Now()
			var refused []int
			for i, err := range k.Apply(changes) {
				if err != nil {
					refused = append(refused, i)
				}
			}
			t.Logf("took %s", time.Since(began))
			if !slices.Equal(refused, c.refused) {
				t.Errorf("refused are %v, want %v", refused, c.refused)
			}
			_, have, err := k.Read()
			must(t, err)
			if got, want := len(have)-len(before), len(changes)-len(c.refused); got != want {
				t.Errorf("%d are in, want %d", got, want)
			}
			nft(t, "delete table inet overlayd") // the kernel is quicker at that than at removing so many
			pass(t, k, network)
		})
	}
}

// TestWhatOverlapsItsFormerSelf cannot be added before that is gone: two rounds of a pass do it.
func TestWhatOverlapsItsFormerSelf(t *testing.T) {
	plugIn(t)
	network := backendtest.Network(t)
	excluded := []string{"10.0.0.0/8", "10.0.0.0/16", "10.128.0.0/9", "0.0.0.0/0", "255.255.255.255/32", "0.0.0.0/1", "10.0.0.0/8"}
	for i, subnet := range []string{"10.5.36.0/24", "10.5.36.0/23", "10.5.36.0/25", "10.5.36.0/22", "10.5.37.128/25", "10.5.36.0/24", "10.5.36.0/32"} {
		network.Leases[2].Subnet = netip.MustParsePrefix(subnet)
		k := openWith(t, with(func(o *kernel.Options) { o.Exclude = []netip.Prefix{netip.MustParsePrefix(excluded[i])} }))
		var changes []backend.Change
		for range 3 {
			h, have, err := k.Read()
			must(t, err)
			changes = backend.Diff(backend.Plan(h, network), have)
			k.Apply(changes)
		}
		if len(changes) > 0 {
			t.Errorf("%s: not settled:\n%s", subnet, lines(changes))
		}
	}
}
