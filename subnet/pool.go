package subnet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Pool is the address range of one family, cut into subnets of one length. The zero Pool is not valid.
type Pool struct {
	Network   netip.Prefix
	SubnetLen int        // prefix length of a host's subnet
	Min, Max  netip.Addr // first addresses of the lowest and the highest subnet handed out
}

// IsValid says whether the pool's family is in use.
func (p Pool) IsValid() bool { return p.Network.IsValid() }

// Contains says whether s lies inside the pool's network, whatever its length.
func (p Pool) Contains(s netip.Prefix) bool {
	return p.Network.IsValid() && s.Bits() >= p.Network.Bits() && p.Network.Contains(s.Addr())
}

// At returns the subnet with the given index; 0 is the network's first, whether it is handed out or not.
func (p Pool) At(index uint64) netip.Prefix {
	base := p.Network.Addr()
	shift := base.BitLen() - p.SubnetLen
	return netip.PrefixFrom(add(base, index, shift), p.SubnetLen)
}

// Index is the inverse of [Pool.At]. It is false for a subnet outside the pool or of another length.
func (p Pool) Index(s netip.Prefix) (uint64, bool) {
	if !p.Contains(s) || s.Bits() != p.SubnetLen {
		return 0, false
	}
	return p.indexOf(s.Addr()), true
}

// size is the number of subnets in the network, those outside Min and Max included.
func (p Pool) size() uint64 { return 1 << (p.SubnetLen - p.Network.Bits()) }

func (p Pool) indexOf(a netip.Addr) uint64 {
	return distance(p.Network.Addr(), a, a.BitLen()-p.SubnetLen)
}

// span returns the indices that s covers, first and last; false when it covers none.
func (p Pool) span(s netip.Prefix) (first, last uint64, ok bool) {
	if !p.IsValid() || !p.Network.Overlaps(s) {
		return 0, 0, false
	}
	if s.Bits() <= p.Network.Bits() {
		return 0, p.size() - 1, true
	}
	first = p.indexOf(s.Addr())
	if s.Bits() >= p.SubnetLen {
		return first, first, true
	}
	return first, first + 1<<(p.SubnetLen-s.Bits()) - 1, true
}

// Addr returns the address with the given offset inside s. The caller keeps the offset inside the subnet.
func Addr(s netip.Prefix, offset uint64) netip.Addr { return add(s.Addr(), offset, 0) }

// add returns a + n<<shift.
func add(a netip.Addr, n uint64, shift int) netip.Addr {
	hi, lo := halves(a)
	nhi, nlo := shl(n, shift)
	lo, carry := bits.Add64(lo, nlo, 0)
	hi, _ = bits.Add64(hi, nhi, carry)
	return whole(hi, lo, a.Is4())
}

// distance returns (b - a) >> shift.
func distance(a, b netip.Addr, shift int) uint64 {
	ahi, alo := halves(a)
	bhi, blo := halves(b)
	lo, borrow := bits.Sub64(blo, alo, 0)
	hi, _ := bits.Sub64(bhi, ahi, borrow)
	if shift >= 64 {
		return hi >> (shift - 64)
	}
	return lo>>shift | hi<<(64-shift)
}

func shl(n uint64, shift int) (hi, lo uint64) {
	if shift >= 64 {
		return n << (shift - 64), 0
	}
	return n >> (64 - shift), n << shift
}

func halves(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func whole(hi, lo uint64, is4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	if is4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}
