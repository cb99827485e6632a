package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// States of connections as nft numbers them (NF_CT_STATE_BIT, NF_CT_STATE_UNTRACKED_BIT), and iptables where it differs.
const (
	stateNew         = 1 << 3
	stateUntracked   = 1 << 6
	xtStateUntracked = 1 << 8 // XT_CONNTRACK_STATE_UNTRACKED
)

// device is one that a packet comes in or goes out by; the zero device is none.
type device struct {
	name  string
	index uint32
}

// packet is one that is not sent: what rules can ask of it. Nothing is known of its source port and its content.
type packet struct {
	in, out  device
	src, dst netip.Addr
	protocol byte
	port     uint16 // it goes to
	anyPort  bool   // the port is one of many that could be: rules for a range of them say nothing
	state    uint32
	local    bool // dst is this host's
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// inOwnOrder is a number in the machine's order. Where rules ask for a range they have it turned round, by an expression that
// the library leaves out.
func inOwnOrder(v uint32) field {
	f := known(native(v))
	for i := range f.sure {
		f.sure[i] = nativeByte
	}
	return f
}

// meta returns the empty field for what is not known.
func (p packet) meta(key expr.MetaKey) field {
	switch key {
	case expr.MetaKeyIIFNAME:
		return known(append([]byte(p.in.name), make([]byte, unix.IFNAMSIZ-len(p.in.name))...))
	case expr.MetaKeyOIFNAME:
		return known(append([]byte(p.out.name), make([]byte, unix.IFNAMSIZ-len(p.out.name))...))
	case expr.MetaKeyIIF:
		return inOwnOrder(p.in.index)
	case expr.MetaKeyOIF:
		return inOwnOrder(p.out.index)
	case expr.MetaKeyNFPROTO:
		return known([]byte{p.family()})
	case expr.MetaKeyL4PROTO:
		return known([]byte{p.protocol})
	case expr.MetaKeyPROTOCOL:
		if p.src.Is4() {
			return known(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
		}
		return known(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
	}
	return field{}
}

func (p packet) family() uint8 {
	if p.src.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// header returns what is known of a header.
func (p packet) header(base expr.PayloadBase) field {
	const length4, protocol4, source4 = 20, 9, 12 // RFC 791
	const length6, protocol6, source6 = 40, 6, 8  // RFC 8200
	const ports, port = 4, 2                      // RFC 768, RFC 9293
	var f field
	put := func(at int, value []byte, sure certainty) {
		copy(f.bytes[at:], value)
		for i := range value {
			f.sure[at+i] = sure
		}
	}
	switch {
	case base == expr.PayloadBaseTransportHeader:
		f = newField(ports)
		sure := knownByte
		if p.anyPort {
			sure = vagueByte
		}
		put(port, binary.BigEndian.AppendUint16(nil, p.port), sure)
	case base == expr.PayloadBaseNetworkHeader && p.src.Is4():
		f = newField(length4)
		put(protocol4, []byte{p.protocol}, knownByte)
		put(source4, slices.Concat(p.src.AsSlice(), p.dst.AsSlice()), knownByte)
	case base == expr.PayloadBaseNetworkHeader:
		f = newField(length6)
		put(protocol6, []byte{p.protocol}, knownByte)
		put(source6, slices.Concat(p.src.AsSlice(), p.dst.AsSlice()), knownByte)
	}
	return f
}

// payload returns a part of a header.
func (p packet) payload(base expr.PayloadBase, offset, length uint32) field {
	const most = 64 // all registers
	header, f := p.header(base), newField(int(min(length, most)))
	if int(offset) < len(header.bytes) {
		copy(f.bytes, header.bytes[offset:])
		copy(f.sure, header.sure[offset:])
	}
	return f
}

// match judges what iptables adds to a rule and nft has no words for.
func (p packet) match(e *expr.Match) answer {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Udp:
		return p.ports(unix.IPPROTO_UDP, info.SrcPorts, info.DstPorts, info.InvFlags&xt.UdpInvSrcPorts != 0, info.InvFlags&xt.UdpInvDestPorts != 0)
	case *xt.Tcp:
		a := p.ports(unix.IPPROTO_TCP, info.SrcPorts, info.DstPorts, info.InvFlags&xt.TcpInvSrcPorts != 0, info.InvFlags&xt.TcpInvDestPorts != 0)
		if info.Option != 0 || info.FlagsMask != 0 {
			a = min(a, perhaps)
		}
		return a
	case *xt.ConntrackMtinfo3:
		if info.MatchFlags&^uint16(xt.ConntrackStateAlias) != uint16(xt.ConntrackState) {
			return perhaps
		}
		state := p.state
		if state == stateUntracked {
			state = xtStateUntracked
		}
		return whether(uint32(info.StateMask)&state != 0 != (info.InvertFlags&uint16(xt.ConntrackState) != 0))
	case *xt.AddrTypeV1:
		const invertDest = 1 << 1 // XT_ADDRTYPE_INVERT_DEST
		kind := uint16(1 << unix.RTN_UNICAST)
		if p.local {
			kind = 1 << unix.RTN_LOCAL
		}
		if info.Source != 0 || info.Dest == 0 || info.Flags&^invertDest != 0 || !p.src.Is4() { // IPv6 has it another way
			return perhaps
		}
		return whether(info.Dest&kind != 0 != (info.Flags&invertDest != 0))
	}
	return perhaps
}

func (p packet) ports(protocol byte, src, dst [2]uint16, notSrc, notDst bool) answer {
	all := [2]uint16{0, 0xffff}
	inside := dst[0] <= p.port && p.port <= dst[1]
	switch {
	case protocol != p.protocol:
		return no
	case p.anyPort && dst != all && dst[0] != dst[1]:
		return perhaps
	case inside == notDst:
		return no
	case src != all || notSrc:
		return perhaps
	}
	return yes
}

func whether(b bool) answer {
	if b {
		return yes
	}
	return no
}

// certainty is how well a byte is known.
type certainty uint8

const (
	unknownByte certainty = iota
	vagueByte             // one of many that it could be: that it is not another one means something, no more
	nativeByte            // known, for being equal or not: of a number in the machine's order
	knownByte
)

// field is a value of which some bytes may not be known. The empty field is one of any length of which nothing is.
type field struct {
	bytes []byte
	sure  []certainty
}

func newField(length int) field { return field{make([]byte, length), make([]certainty, length)} }

// known is a field that is; nil is the empty one.
func known(value []byte) field {
	f := field{value, make([]certainty, len(value))}
	for i := range f.sure {
		f.sure[i] = knownByte
	}
	return f
}

// registers hold what a rule has loaded: 16 of four bytes, which are also four of 16 (include/uapi/linux/netfilter/nf_tables.h).
type registers struct {
	bytes [64]byte
	sure  [64]certainty
}

const slot = 4 // bytes of a register

// at is where a register begins.
func at(register uint32) int {
	const verdict, wide, first = 1, 16, 8 // NFT_REG_VERDICT, NFT_REG_SIZE, NFT_REG32_00
	if register >= first {
		return min(int(register)-first, 15) * slot
	}
	return max(int(register)-verdict, 0) * wide % 64
}

// load fills registers, the last of them to its end.
func (r *registers) load(register uint32, f field) {
	begin := at(register)
	if len(f.bytes) == 0 {
		clear(r.sure[begin:])
		return
	}
	end := min(begin+align(len(f.bytes)), len(r.bytes))
	clear(r.bytes[begin:end])
	for i := range r.sure[begin:end] {
		r.sure[begin+i] = knownByte
	}
	copy(r.bytes[begin:end], f.bytes)
	copy(r.sure[begin:end], f.sure)
}

// value returns so many bytes, and how sure the least sure of them is.
func (r *registers) value(register uint32, length int) ([]byte, certainty) {
	begin := at(register)
	if length <= 0 || begin+length > len(r.bytes) {
		return nil, unknownByte
	}
	return r.bytes[begin:][:length], slices.Min(r.sure[begin:][:length])
}

func (r *registers) bitwise(e *expr.Bitwise) {
	v, _ := r.value(e.SourceRegister, int(e.Len))
	if v == nil || len(e.Mask) != len(v) || len(e.Xor) != len(v) {
		r.load(e.DestRegister, field{})
		return
	}
	out := newField(len(v))
	for i := range v {
		out.bytes[i] = v[i]&e.Mask[i] ^ e.Xor[i]
		out.sure[i] = r.sure[at(e.SourceRegister)+i]
		switch {
		case e.Mask[i] == 0:
			out.sure[i] = knownByte
		case out.sure[i] == vagueByte && e.Mask[i] != 0xff:
			out.sure[i] = unknownByte
		}
	}
	r.load(e.DestRegister, out)
}

// compare judges a comparison. What was looked at once is not looked at again: a rule loads anew, and where it seems not to,
// the library has left out an expression that it does not know. Of a range the lower end is looked at first.
func (r *registers) compare(e *expr.Cmp) answer {
	v, sure := r.value(e.Register, len(e.Data))
	if e.Op != expr.CmpOpGte && e.Op != expr.CmpOpGt {
		defer func() { *r = registers{} }()
	}
	switch {
	case e.Op == expr.CmpOpEq:
		return r.equal(e.Register, e.Data)
	case e.Op == expr.CmpOpNeq:
		return yes - r.equal(e.Register, e.Data)
	case sure != knownByte:
		return perhaps
	}
	c := bytes.Compare(v, e.Data)
	switch e.Op {
	case expr.CmpOpLt:
		return whether(c < 0)
	case expr.CmpOpLte:
		return whether(c <= 0)
	case expr.CmpOpGt:
		return whether(c > 0)
	case expr.CmpOpGte:
		return whether(c >= 0)
	}
	return perhaps
}

// equal says whether a register holds the bytes: one that differs is enough to know.
func (r *registers) equal(register uint32, data []byte) answer {
	v, sure := r.value(register, len(data))
	for i := range v {
		if r.sure[at(register)+i] != unknownByte && v[i] != data[i] {
			return no
		}
	}
	return max(perhaps, whether(sure >= nativeByte))
}

func (r *registers) within(e *expr.Range) answer {
	v, sure := r.value(e.Register, len(e.FromData))
	if sure != knownByte {
		return perhaps
	}
	inside := bytes.Compare(e.FromData, v) <= 0 && bytes.Compare(v, e.ToData) <= 0
	return whether(inside == (e.Op == expr.CmpOpEq))
}
