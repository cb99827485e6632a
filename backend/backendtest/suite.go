package backendtest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// Network is a snapshot of three hosts: h1, h2 and h3. It is dual stack.
func Network(t testing.TB) subnet.Snapshot {
	t.Helper()
	config, err := subnet.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`))
	if err != nil {
		t.Fatal(err)
	}
	var leases []subnet.Lease
	for i, node := range []string{"h1", "h2", "h3"} {
		leases = append(leases, subnet.Lease{
			Node: node, Subnet: config.IPv4.At(uint64(34 + i)), Subnet6: config.IPv6.At(uint64(34 + i)),
			PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(7 + i)}), MAC: subnet.VTEPMAC(1, node), Backend: "vxlan", Created: int64(i + 1),
		})
	}
	return subnet.Vet(10, config, leases, nil, nil)
}

// Suite says what every [backend.Kernel] does. open returns a machine that is node h1 with uplink eth0, 192.0.2.7/24,
// MTU 1500, and none of our rows; own names of its devices are overlay.1 and ovl0.
func Suite(t *testing.T, open func(t *testing.T) backend.Kernel) {
	network := Network(t)
	for _, c := range []struct {
		name string
		act  func(t *testing.T, k backend.Kernel)
	}{
		{"a planned state is read back to the letter", func(t *testing.T, k backend.Kernel) { settle(t, k, network) }},
		{"a peer goes and comes back", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			less := network
			less.Leases = network.Leases[:2]
			settle(t, k, less)
			settle(t, k, network)
		}},
		{"a peer moves to another address and MAC", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			moved := network
			moved.Leases = append([]subnet.Lease(nil), network.Leases...)
			moved.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.99")
			moved.Leases[2].MAC = subnet.VTEPMAC(1, "reinstalled")
			settle(t, k, moved)
		}},
		{"the VXLAN device gets another VNI, port and MTU", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			other := network
			other.Config.Backend.VNI, other.Config.Backend.Port, other.Config.Backend.MTU = 7, 4789, 1400
			settle(t, k, other)
		}},
		{"a device that is removed comes back with all its rows", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			remove[backend.VXLAN](t, k)
			settle(t, k, network)
			remove[backend.Bridge](t, k)
			settle(t, k, network)
		}},
		{"a settled state needs no change", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			if changes := difference(t, k, network); len(changes) > 0 {
				t.Errorf("settled, and yet: %v", changes)
			}
		}},
		{"removing what is gone is no error", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			_, have := read(t, k)
			changes := backend.Diff(backend.State{}, have)
			for range 2 {
				for i, err := range k.Apply(changes) {
					if err != nil {
						t.Errorf("%s: %v", changes[i], err)
					}
				}
			}
		}},
		{"one bad change does not block the others", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			errs := k.Apply([]backend.Change{
				{New: backend.Neigh{Dev: "nowhere", IP: netip.MustParseAddr("10.5.9.0"), MAC: subnet.MAC{2}}},
				{New: backend.Neigh{Dev: "overlay.1", IP: netip.MustParseAddr("10.5.9.0"), MAC: subnet.MAC{2}}},
			})
			if errs[0] == nil || errs[1] != nil {
				t.Errorf("errors are %v, want one for the first only", errs)
			}
		}},
		{"uninstalling leaves nothing", func(t *testing.T, k backend.Kernel) {
			settle(t, k, network)
			if _, err := backend.Remove(k); err != nil {
				t.Fatal(err)
			}
			_, have := read(t, k)
			for _, e := range have {
				if _, knob := e.(backend.Sysctl); !knob {
					t.Errorf("left: %s", e)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.act(t, open(t)) })
	}
}

func read(t *testing.T, k backend.Kernel) (backend.Host, backend.State) {
	t.Helper()
	h, s, err := k.Read()
	if err != nil {
		t.Fatal(err)
	}
	return h, s
}

func difference(t *testing.T, k backend.Kernel, network subnet.Snapshot) []backend.Change {
	t.Helper()
	h, have := read(t, k)
	return backend.Diff(backend.Plan(h, network), have)
}

// settle applies the plan, twice if a device had to be made anew, and compares what the kernel holds then as text.
func settle(t *testing.T, k backend.Kernel, network subnet.Snapshot) {
	t.Helper()
	for range 2 {
		changes := difference(t, k, network)
		for i, err := range k.Apply(changes) {
			if err != nil {
				t.Errorf("%s: %v", changes[i], err)
			}
		}
	}
	h, have := read(t, k)
	if d := cmp.Diff(lines(backend.Plan(h, network)), lines(have)); d != "" {
		t.Fatalf("the kernel does not hold the plan (-plan +kernel):\n%s", d)
	}
}

func lines(s backend.State) []string { return strings.Split(s.String(), "\n") }

// remove takes our device of kind D away behind the plan's back.
func remove[D backend.Entry](t *testing.T, k backend.Kernel) {
	t.Helper()
	_, have := read(t, k)
	for _, e := range have {
		if _, ok := e.(D); ok {
			for _, err := range k.Apply([]backend.Change{{Old: e}}) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
