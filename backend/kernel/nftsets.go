package kernel

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// nftField is one part of a set's key: its type in nft's numbering (nftables' include/datatype.h), its length in bytes, and
// what a rule loads for it, so that nft can print the set and read it again.
type nftField struct {
	kind   uint32
	length uint32
	origin []byte
}

const (
	typeInteger = 4
	typeIPv4    = 7
	typeIPv6    = 8
	typeEther   = 9
	typeIfname  = 41
	typeBits    = 6 // that one type takes in the type of a concatenation
)

// Where a key comes from, in the words of nft's own set user data (libnftnl's udata.h, nftables' src/expression.c): kind of
// expression, then for a payload its protocol and field, or base, offset and length in bits.
const (
	udataExpr, udataData  = 0, 1
	exprPayload, exprMeta = 7, 9
	exprConcat            = 13
	metaIIFNAME           = 6
	protoIP, protoIP6     = 12, 13
	protoEther            = 17
	fieldIPSource         = 11
	fieldIP6Source        = 8
	fieldEtherSource      = 2
	baseTransport         = 3
)

const nftSetConcat = 0x80 // NFT_SET_CONCAT (linux/netfilter/nf_tables.h): intervals in each part of a key

// tlv appends one piece of user data.
func tlv(b []byte, kind byte, data []byte) []byte {
	return userdata.Append(b, userdata.Type(kind), data)
}

// tlv32 appends a number, which nft writes in the host's order.
func tlv32(b []byte, kind byte, v uint32) []byte {
	return tlv(b, kind, binary.NativeEndian.AppendUint32(nil, v))
}

func originOf(expr uint32, data []byte) []byte {
	return tlv(tlv32(nil, udataExpr, expr), udataData, data)
}

func header(protocol, field uint32) []byte {
	return originOf(exprPayload, tlv32(tlv32(nil, 0, protocol), 1, field))
}

// raw is a field of no protocol that nft knows: an offset and a length in bytes behind the transport header.
func raw(offset, length uint32) nftField {
	desc := tlv32(tlv32(tlv32(tlv32(tlv32(nil, 0, 0), 1, 0), 2, baseTransport), 3, offset*8), 4, length*8)
	return nftField{kind: typeInteger, length: length, origin: originOf(exprPayload, desc)}
}

func ipField(six bool) nftField {
	if six {
		return nftField{kind: typeIPv6, length: 16, origin: header(protoIP6, fieldIP6Source)}
	}
	return nftField{kind: typeIPv4, length: 4, origin: header(protoIP, fieldIPSource)}
}

func ifnameField() nftField {
	return nftField{kind: typeIfname, length: ifnamsz, origin: originOf(exprMeta, tlv32(nil, 0, metaIIFNAME))}
}

func etherField() nftField {
	return nftField{kind: typeEther, length: 6, origin: header(protoEther, fieldEtherSource)}
}

// nftSet is a set's definition.
type nftSet struct {
	name, comment string
	fields        []nftField
	interval      bool
}

// setsOf are the sets of our tables.
func setsOf(t backend.Table) []nftSet {
	if t.Family == backend.FamilyBridge {
		return bridgeSets()
	}
	var all []nftSet
	for _, six := range []bool{false, true} {
		d, ip := "4", ipField(six)
		if six {
			d = "6"
		}
		all = append(all,
			nftSet{backend.SetPool + d, "the network", []nftField{ip}, true},
			nftSet{backend.SetOwn + d, "this host's part of it", []nftField{ip}, true},
			nftSet{backend.SetExclude + d, "where pods' packets go with their own addresses", []nftField{ip}, true},
			nftSet{backend.SetVTEPs + d, "hosts with a lease", []nftField{ip}, true},
			nftSet{backend.SetOuter + d, "where VXLAN arrives", []nftField{ip}, false},
		)
		for _, p := range pairSetsOf(t.Filter, six) {
			fields := []nftField{ipField(t.Filter.Outer6), raw(atInnerSource(six), p.length)}
			all = append(all, nftSet{p.name, p.comment, fields, p.interval})
		}
	}
	return all
}

// pairSet is a set of hosts with a lease and what sources inside their packets are theirs.
type pairSet struct {
	name, comment string
	reason        string // of the rule that accepts what is in it
	length        uint32 // of the part of the source address that is looked up, in bytes
	interval      bool
}

// pairSetsOf are the sets for one address family, in the order in which rules look into them.
func pairSetsOf(f backend.Filter, six bool) []pairSet {
	d, length, bits := "4", uint32(4), f.Bits4
	if six {
		d, length, bits = "6", 16, f.Bits6
	}
	all := []pairSet{
		{backend.SetHosts + d, "hosts with a lease and single addresses that are theirs", "from the host that has this address", length, false},
		{backend.SetPeers + d, "hosts with a lease and further sources that are theirs", "from the host that has this source", length, true},
	}
	if f.Subnets(six) {
		usual := pairSet{backend.SetSubnets + d, "hosts with a lease and their subnets", "from the host that has this subnet", uint32(bits / 8), false}
		all = append([]pairSet{usual}, all...)
	}
	return all
}

func bridgeSets() []nftSet {
	port, mac := ifnameField(), etherField()
	return []nftSet{
		{"ports", "links of pods", []nftField{port}, false},
		{"macs", "and their MACs", []nftField{port, mac}, false},
		{"pods4", "and their addresses", []nftField{port, mac, ipField(false)}, false},
		{"pods6", "and their addresses", []nftField{port, mac, ipField(true)}, false},
		{"targets6", "and what they may advertise", []nftField{port, mac, raw(atICMPTarget, 16)}, false},
	}
}

func (s nftSet) concat() bool { return len(s.fields) > 1 }

func (s nftSet) flags() uint32 {
	var flags uint32
	if s.interval {
		flags |= unix.NFT_SET_INTERVAL
		if s.concat() {
			flags |= nftSetConcat
		}
	}
	return flags
}

func (s nftSet) keyType() uint32 {
	var kind uint32
	for _, f := range s.fields {
		kind = kind<<typeBits | f.kind
	}
	return kind
}

// pad is the length to which the kernel rounds a part of a concatenation up.
func pad(length uint32) uint32 { return (length + 3) &^ 3 }

func (s nftSet) keyLength() uint32 {
	if !s.concat() {
		return s.fields[0].length
	}
	var n uint32
	for _, f := range s.fields {
		n += pad(f.length)
	}
	return n
}

// userData tells nft how to print the set.
func (s nftSet) userData() []byte {
	const invalid, host, network = 0, 1, 2
	order := uint32(network)
	switch {
	case s.concat():
		order = invalid
	case s.fields[0].kind == typeIfname:
		order = host
	}
	b := tlv32(nil, byte(userdata.NFTNL_UDATA_SET_KEYBYTEORDER), order)
	if s.concat() {
		var parts []byte
		for i, f := range s.fields {
			parts = tlv(parts, byte(i), f.origin)
		}
		b = tlv(b, byte(userdata.NFTNL_UDATA_SET_KEY_TYPEOF), originOf(exprConcat, parts))
	}
	return tlv(b, byte(userdata.NFTNL_UDATA_SET_COMMENT), append([]byte(s.comment), 0))
}

// nftElement is an element: a key, or in a set of intervals its first and last key. That without first matches everything.
type nftElement struct {
	family, set string
	first, last []byte // last is nil where there are no intervals
	comment     string // for nft to print
}

// concat joins the parts of a key as the kernel does.
func concatKey(parts ...[]byte) []byte {
	var key []byte
	for _, p := range parts {
		key = append(key, p...)
		key = append(key, make([]byte, int(pad(uint32(len(p))))-len(p))...)
	}
	return key
}

func digitOf(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// elementOf is the element of a row; false for rows that are none.
func elementOf(e backend.Entry) (nftElement, bool) {
	switch e := e.(type) {
	case backend.Member:
		first, last := interval(e.Prefix)
		if e.Set == backend.SetOuter {
			last = nil
		}
		return nftElement{family: backend.FamilyInet, set: e.Set + digitOf(e.Prefix.Addr()), first: first, last: last}, true
	case backend.Pair:
		outer := e.Outer.AsSlice()
		first, last := interval(e.Inner)
		n := nftElement{family: backend.FamilyInet, set: e.Set + digitOf(e.Inner.Addr()), comment: e.Inner.String()} // nft prints it as a number
		if e.Set == backend.SetPeers {
			n.first, n.last = concatKey(outer, first), concatKey(outer, last)
		} else {
			n.first = concatKey(outer, first[:e.Inner.Bits()/8])
		}
		return n, true
	case backend.PodAddr:
		return nftElement{family: backend.FamilyBridge, set: e.Set + digitOf(e.Addr), first: concatKey(name16(e.Link), e.MAC[:], e.Addr.AsSlice())}, true
	case backend.PodMAC:
		return nftElement{family: backend.FamilyBridge, set: "macs", first: concatKey(name16(e.Link), e.MAC[:])}, true
	case backend.PodPort:
		return nftElement{family: backend.FamilyBridge, set: "ports", first: name16(e.Link)}, true
	case backend.Stray:
		if e.Row != nil {
			return elementOf(e.Row)
		}
		return nftElement{family: e.Family, set: e.Set, first: key(e.First), last: key(e.Last)}, true
	}
	return nftElement{}, false
}

// key is nil for the empty string.
func key(bytes string) []byte { return append([]byte(nil), bytes...) }

// rowOf is the inverse of elementOf for an element of the set.
func rowOf(s nftSet, e nftElement) backend.Entry {
	if row := wantedRow(s, e); row != nil {
		return row
	}
	return backend.Stray{Family: e.family, Set: e.set, First: string(e.first), Last: string(e.last)}
}

// wantedRow returns nil for an element that no plan wants.
func wantedRow(s nftSet, e nftElement) backend.Entry {
	if e.family == backend.FamilyBridge {
		row := podRowOf(e)
		if same, is := elementOf(row); !is || !bytes.Equal(same.first, e.first) { // zeros fill up names and MACs
			return nil
		}
		return row
	}
	name, six := strings.CutSuffix(e.set, "6")
	name = strings.TrimSuffix(name, "4")
	if uint32(len(e.first)) != s.keyLength() || s.interval && len(e.last) != len(e.first) {
		return nil
	}
	switch {
	case s.concat():
	case !s.interval:
		return backend.Member{Set: name, Prefix: beginning(e.first, six)}
	default:
		if prefix, ok := prefixBetween(e.first, e.last); ok {
			return backend.Member{Set: name, Prefix: prefix}
		}
		return nil
	}
	split, end := s.fields[0].length, s.fields[0].length+s.fields[1].length
	outer, ok := netip.AddrFromSlice(e.first[:split])
	inner := beginning(e.first[split:end], six)
	for _, padding := range e.first[end:] { // packets have zeros there
		ok = ok && padding == 0
	}
	if s.interval {
		var one bool
		inner, one = prefixBetween(e.first[split:], e.last[split:])
		ok = ok && one && string(e.first[:split]) == string(e.last[:split])
	}
	if !ok {
		return nil
	}
	return backend.Pair{Set: name, Inner: inner, Outer: outer}
}

// beginning is the prefix of all addresses that begin with some bytes.
func beginning(begin []byte, six bool) netip.Prefix {
	var b [16]byte
	copy(b[:], begin)
	if six {
		return netip.PrefixFrom(netip.AddrFrom16(b), len(begin)*8)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:])), len(begin)*8)
}

func podRowOf(e nftElement) backend.Entry {
	const macEnd = ifnamsz + 8
	if len(e.first) < ifnamsz {
		return nil
	}
	link := unix.ByteSliceToString(e.first[:ifnamsz])
	if e.set == "ports" {
		return backend.PodPort{Link: link}
	}
	if len(e.first) < macEnd {
		return nil
	}
	mac := subnet.MAC(e.first[ifnamsz : ifnamsz+6])
	if e.set == "macs" {
		return backend.PodMAC{Link: link, MAC: mac}
	}
	addr, ok := netip.AddrFromSlice(e.first[macEnd:])
	if !ok {
		return nil
	}
	return backend.PodAddr{Set: e.set[:len(e.set)-1], Link: link, Addr: addr, MAC: mac}
}

// prefixBetween is the prefix that has the first and the last address; false when no prefix has.
func prefixBetween(first, last []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(first)
	if !ok {
		return netip.Prefix{}, false
	}
	n := a.BitLen()
	for i := range first {
		if differ := first[i] ^ last[i]; differ != 0 {
			n = i*8 + bits.LeadingZeros8(differ)
			break
		}
	}
	for i := n / 8; i < len(first); i++ { // without copies: there is one for each peer
		host := byte(0xff)
		if i == n/8 {
			host >>= n % 8
		}
		if first[i]&host != 0 || last[i]&host != host {
			return netip.Prefix{}, false
		}
	}
	return netip.PrefixFrom(a, n), true
}
