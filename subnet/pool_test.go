package subnet_test

import (
	"math/big"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/subnet"
)

// drawPool makes a pool of either family with up to 2^24 subnets, which is what ParseConfig allows.
func drawPool(t *rapid.T) subnet.Pool {
	addr := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
	longest := 126
	if rapid.Bool().Draw(t, "IPv4") {
		addr = netip.AddrFrom4([4]byte(addr.AsSlice()[:4]))
		longest = 30
	}
	bits := rapid.IntRange(1, longest-2).Draw(t, "bits")
	length := rapid.IntRange(bits+2, min(longest, bits+24)).Draw(t, "length")
	return subnet.Pool{Network: netip.PrefixFrom(addr, bits).Masked(), SubnetLen: length}
}

// number is an address as one number, for a second opinion on the arithmetic.
func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

func TestPoolNumbersItsSubnets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPool(t)
		want := rapid.Uint64Range(0, 1<<(p.SubnetLen-p.Network.Bits())-1).Draw(t, "index")
		s := p.At(want)
		if s.Bits() != p.SubnetLen || s != s.Masked() || !p.Contains(s) {
			t.Fatalf("subnet %d of %s is %s, want a /%d inside it", want, p.Network, s, p.SubnetLen)
		}
		if got, ok := p.Index(s); !ok || got != want {
			t.Fatalf("%s is subnet %d (%t) of %s, want %d", s, got, ok, p.Network, want)
		}
		size := new(big.Int).Lsh(big.NewInt(1), uint(s.Addr().BitLen()-p.SubnetLen))
		first := number(p.Network.Addr())
		first.Add(first, size.Mul(size, new(big.Int).SetUint64(want)))
		if got := number(s.Addr()); got.Cmp(first) != 0 {
			t.Fatalf("subnet %d of %s by /%d begins at %x, want %x", want, p.Network, p.SubnetLen, got, first)
		}
	})
}

func TestAddrIsTheOffsetFromTheSubnetsFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPool(t)
		s := p.At(rapid.Uint64Range(0, 1<<(p.SubnetLen-p.Network.Bits())-1).Draw(t, "index"))
		offset := rapid.Uint64Range(0, 1<<min(63, s.Addr().BitLen()-s.Bits())-1).Draw(t, "offset")
		a := subnet.Addr(s, offset)
		if !s.Contains(a) {
			t.Fatalf("address %d of %s is %s, outside it", offset, s, a)
		}
		if got := new(big.Int).Sub(number(a), number(s.Addr())); got.Cmp(new(big.Int).SetUint64(offset)) != 0 {
			t.Fatalf("address %d of %s is %s, which is %d further", offset, s, a, got)
		}
		if got, ok := p.Index(netip.PrefixFrom(a, p.SubnetLen).Masked()); !ok || p.At(got) != s {
			t.Fatalf("the subnet around %s is number %d (%t), not %s", a, got, ok, s)
		}
	})
}

func TestPoolHasNoNumberForOtherSubnets(t *testing.T) {
	four := parse(t, `{"Network": "10.5.0.0/16"}`).IPv4
	six := parse(t, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`).IPv6
	for _, c := range []struct {
		claim  string
		pool   subnet.Pool
		subnet string
		inside bool
	}{
		{"longer", four, "10.5.34.0/25", true},
		{"shorter", four, "10.5.34.0/23", true},
		{"the network itself", four, "10.5.0.0/16", true},
		{"wider than the network", four, "10.0.0.0/8", false},
		{"wider than the network, from its first address on", parse(t, `{"Network": "10.0.0.0/16"}`).IPv4, "10.0.0.0/8", false},
		{"below", four, "10.4.255.0/24", false},
		{"above", four, "10.6.0.0/24", false},
		{"the other family", four, "fd00:5::/64", false},
		{"longer, IPv6", six, "fd00:5::/65", true},
		{"outside, IPv6", six, "fd00:6::/64", false},
		{"the other family, IPv6", six, "10.5.34.0/24", false},
		{"the zero pool", subnet.Pool{}, "10.5.34.0/24", false},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := netip.MustParsePrefix(c.subnet)
			if index, ok := c.pool.Index(s); ok {
				t.Errorf("%s has number %d in %s", s, index, c.pool.Network)
			}
			if got := c.pool.Contains(s); got != c.inside {
				t.Errorf("%s inside %s: got %t, want %t", s, c.pool.Network, got, c.inside)
			}
		})
	}
}

func TestVTEPAndGatewayAreTheFirstTwoAddresses(t *testing.T) {
	for _, c := range []struct{ subnet, vtep, gateway string }{
		{"10.5.34.0/24", "10.5.34.0", "10.5.34.1"},
		{"10.5.0.4/30", "10.5.0.4", "10.5.0.5"},
		{"fd00:5:0:22::/64", "fd00:5:0:22::", "fd00:5:0:22::1"},
	} {
		s := netip.MustParsePrefix(c.subnet)
		if got := subnet.VTEP(s).String(); got != c.vtep {
			t.Errorf("VTEP of %s: got %s, want %s", s, got, c.vtep)
		}
		if got := subnet.Gateway(s).String(); got != c.gateway {
			t.Errorf("gateway of %s: got %s, want %s", s, got, c.gateway)
		}
	}
}
