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
	state    uint32
	local    bool // dst is this host's
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// meta returns nil for what is not known.
func (p packet) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return append([]byte(p.in.name), make([]byte, unix.IFNAMSIZ-len(p.in.name))...)
	case expr.MetaKeyOIFNAME:
		return append([]byte(p.out.name), make([]byte, unix.IFNAMSIZ-len(p.out.name))...)
	case expr.MetaKeyIIF:
		return native(p.in.index)
	case expr.MetaKeyOIF:
		return native(p.out.index)
	case expr.MetaKeyNFPROTO:
		return []byte{p.family()}
	case expr.MetaKeyL4PROTO:
		return []byte{p.protocol}
	case expr.MetaKeyPROTOCOL:
		if p.src.Is4() {
			return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP)
		}
		return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6)
	}
	return nil
}

func (p packet) family() uint8 {
	if p.src.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// payload returns bytes of a header, nil for what is not known.
func (p packet) payload(base expr.PayloadBase, offset, length uint32) []byte {
	within := func(field []byte, begin uint32) []byte {
		if offset < begin || offset+length > begin+uint32(len(field)) {
			return nil
		}
		return field[offset-begin:][:length]
	}
	const protocol4, source4, protocol6, source6, port = 9, 12, 6, 8, 2 // offsets (RFC 791, RFC 8200, RFC 768)
	addrs := slices.Concat(p.src.AsSlice(), p.dst.AsSlice())
	switch {
	case base == expr.PayloadBaseTransportHeader:
		return within(binary.BigEndian.AppendUint16(nil, p.port), port)
	case base != expr.PayloadBaseNetworkHeader:
		return nil
	case p.src.Is4() && offset < source4:
		return within([]byte{p.protocol}, protocol4)
	case p.src.Is4():
		return within(addrs, source4)
	case offset < source6:
		return within([]byte{p.protocol}, protocol6)
	}
	return within(addrs, source6)
}

// match judges what iptables adds to a rule and nft has no words for.
func (p packet) match(e *expr.Match) answer {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Udp:
		return p.ports(unix.IPPROTO_UDP, info.SrcPorts, info.DstPorts, info.InvFlags&xt.UdpInvSrcPorts != 0, info.InvFlags&xt.UdpInvDestPorts != 0)
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
		if info.Source != 0 || info.Dest == 0 || info.Flags&^invertDest != 0 {
			return perhaps
		}
		return whether(info.Dest&kind != 0 != (info.Flags&invertDest != 0))
	}
	return perhaps
}

func (p packet) ports(protocol byte, src, dst [2]uint16, notSrc, notDst bool) answer {
	if protocol != p.protocol || dst[0] <= p.port && p.port <= dst[1] == notDst {
		return no
	}
	if src != [2]uint16{0, 0xffff} || notSrc {
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

// registers hold what a rule has loaded: 16 of four bytes, which are also four of 16 (include/uapi/linux/netfilter/nf_tables.h).
type registers struct {
	bytes [64]byte
	known [16]bool
}

const slot = 4 // bytes of a register

// at is where a register begins.
func at(register uint32) int {
	const verdict, wide, first = 1, 16, 8 // NFT_REG_VERDICT, NFT_REG_SIZE, NFT_REG32_00
	if register >= first {
		return min(int(register)-first, 15) * slot
	}
	return max(int(register)-verdict, 0) * wide
}

// load fills registers; nil is a value that is not known, of any length.
func (r *registers) load(register uint32, value []byte) {
	begin := at(register)
	if value == nil {
		for i := begin / slot; i < len(r.known); i++ {
			r.known[i] = false
		}
		return
	}
	end := min(begin+align(len(value)), len(r.bytes))
	clear(r.bytes[begin:end])
	copy(r.bytes[begin:], value)
	for i := begin / slot; i < end/slot; i++ {
		r.known[i] = true
	}
}

// value returns so many bytes, or nil when they are not all known.
func (r *registers) value(register uint32, length int) []byte {
	begin := at(register)
	if begin+length > len(r.bytes) || slices.Contains(r.known[begin/slot:align(begin+length)/slot], false) {
		return nil
	}
	return r.bytes[begin:][:length]
}

func (r *registers) bitwise(e *expr.Bitwise) {
	v := r.value(e.SourceRegister, int(e.Len))
	if v == nil || len(e.Mask) != len(v) || len(e.Xor) != len(v) {
		r.load(e.DestRegister, nil)
		return
	}
	out := make([]byte, len(v))
	for i := range v {
		out[i] = v[i]&e.Mask[i] ^ e.Xor[i]
	}
	r.load(e.DestRegister, out)
}

func (r *registers) compare(e *expr.Cmp) answer {
	v := r.value(e.Register, len(e.Data))
	if v == nil {
		return perhaps
	}
	c := bytes.Compare(v, e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return whether(c == 0)
	case expr.CmpOpNeq:
		return whether(c != 0)
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

func (r *registers) within(e *expr.Range) answer {
	v := r.value(e.Register, len(e.FromData))
	if v == nil {
		return perhaps
	}
	inside := bytes.Compare(e.FromData, v) <= 0 && bytes.Compare(v, e.ToData) <= 0
	return whether(inside == (e.Op == expr.CmpOpEq))
}

// among looks for what a register holds in the elements of a set. Those of a set of intervals say where one begins or ends.
func (r *registers) among(register uint32, all []setElement) (setElement, answer) {
	if all == nil {
		return setElement{}, perhaps
	}
	var last setElement // the greatest that is not beyond
	intervals := slices.ContainsFunc(all, func(e setElement) bool { return e.end })
	for _, e := range all {
		v := r.value(register, len(e.first))
		switch {
		case v == nil || e.first == nil || e.last != nil: // unknown, everything else, or a concatenation with intervals
			return setElement{}, perhaps
		case intervals && bytes.Compare(e.first, v) <= 0 && (last.first == nil || bytes.Compare(last.first, e.first) <= 0):
			last = e
		case !intervals && bytes.Equal(e.first, v):
			return e, yes
		}
	}
	return last, whether(last.first != nil && !last.end)
}
