package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// Offsets into an outer packet from its UDP header on: UDP has 8 bytes, VXLAN 8 (RFC 7348 section 5), Ethernet 14.
const (
	atPort       = 2
	atFlags      = 8
	atVNI        = 12
	atInnerMAC   = 16
	atInnerType  = 28
	atInnerSrc4  = 42
	atInnerSrc6  = 38
	vxlanHasVNI  = 0x08
	groupAddress = 0x01 // of a MAC: multicast or broadcast
)

// rawPriority comes before conntrack, and before what others do at "raw" (-300).
const rawPriority = -310

const srcnatPriority = 100

// markMasquerade is on packets that kube-proxy masquerades itself.
const markMasquerade = 0x4000

// firstPort begins the source ports of masqueraded UDP when the VXLAN port is below it; else they end below that port.
const (
	firstPort        = 10000
	unprivilegedPort = 1024
	lastPort         = 65535
)

// nftRule is one rule; nft shows the comment.
type nftRule struct {
	comment string
	exprs   []expr.Any
}

// nftChain is a chain with its rules. Without kind it is one to jump to.
type nftChain struct {
	name, comment  string
	kind           string
	hook, priority int32
	rules          []nftRule
}

func (c *nftChain) add(comment string, parts ...[]expr.Any) {
	r := nftRule{comment: comment}
	for _, p := range parts {
		r.exprs = append(r.exprs, p...)
	}
	c.rules = append(c.rules, r)
}

// Registers: the first of 16 bytes, or the first of 4 (linux/netfilter/nf_tables.h, enum nft_registers).
const (
	reg1    = unix.NFT_REG_1
	reg2    = unix.NFT_REG_2
	reg32   = unix.NFT_REG32_00 // the beginning of reg1
	ifnamsz = unix.IFNAMSIZ
)

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg1} }

func load(base expr.PayloadBase, offset, length, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func equal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data} }
func differ(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: data}
}

func mask(data ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(data)), Mask: data, Xor: make([]byte, len(data))}
}

func inSet(name string) expr.Any { return &expr.Lookup{SourceRegister: reg1, SetName: name} }
func notIn(name string) expr.Any {
	return &expr.Lookup{SourceRegister: reg1, SetName: name, Invert: true}
}

func match(exprs ...expr.Any) []expr.Any { return exprs }

func verdict(kind expr.VerdictKind) []expr.Any { return match(&expr.Verdict{Kind: kind}) }

func jump(chain string) []expr.Any {
	return match(&expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}

func drop(counter string) []expr.Any {
	return match(&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop})
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// be24 is a VNI as it is on the wire.
func be24(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v)[1:] }

func name16(name string) []byte {
	b := make([]byte, ifnamsz)
	copy(b, name)
	return b
}

func iifname(name string) []expr.Any {
	return match(meta(expr.MetaKeyIIFNAME), equal(name16(name)...))
}

func nfproto(six bool) []expr.Any {
	if six {
		return match(meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV6))
	}
	return match(meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV4))
}

func l4proto(protocol byte) []expr.Any {
	return match(meta(expr.MetaKeyL4PROTO), equal(protocol))
}

// address loads the source or destination address of the packet.
func address(six, source bool) expr.Any {
	switch {
	case six && source:
		return load(expr.PayloadBaseNetworkHeader, 8, 16, reg1)
	case six:
		return load(expr.PayloadBaseNetworkHeader, 24, 16, reg1)
	case source:
		return load(expr.PayloadBaseNetworkHeader, 12, 4, reg1)
	}
	return load(expr.PayloadBaseNetworkHeader, 16, 4, reg1)
}

// toPort matches packets to our port: few expressions for all packets that are not VXLAN.
func toPort(f backend.Filter) []expr.Any {
	return append(l4proto(unix.IPPROTO_UDP), load(expr.PayloadBaseTransportHeader, atPort, 2, reg1), equal(be16(f.Port)...))
}

// ofNetwork matches packets of our VNI among those to our port.
func ofNetwork(f backend.Filter) []expr.Any { return match(vni(), equal(be24(f.VNI)...)) }

func vni() expr.Any { return load(expr.PayloadBaseTransportHeader, atVNI, 3, reg1) }

// toUs matches packets to an address of this host at which VXLAN arrives. Asking the routes (fib) costs more.
func toUs(f backend.Filter) []expr.Any {
	return append(nfproto(f.Outer6), address(f.Outer6, false), inSet(backend.SetOuter+outerDigit(f)))
}

func outerDigit(f backend.Filter) string {
	if f.Outer6 {
		return "6"
	}
	return "4"
}

// family is one address family of the network.
type family struct {
	six       bool
	digit     string
	etherType uint16
	toGroups  []expr.Any // matches multicast destinations
}

func familiesOf(f backend.Filter) []family {
	var all []family
	if f.Bits4 > 0 {
		groups := match(address(false, false), mask(0xf0, 0, 0, 0), equal(0xe0, 0, 0, 0))
		all = append(all, family{digit: "4", etherType: unix.ETH_P_IP, toGroups: groups})
	}
	if f.Bits6 > 0 {
		groups := match(load(expr.PayloadBaseNetworkHeader, 24, 1, reg1), equal(0xff)) // ff00::/8
		all = append(all, family{six: true, digit: "6", etherType: unix.ETH_P_IPV6, toGroups: groups})
	}
	return all
}

func first16(b ...byte) []byte { return append(b, make([]byte, 16-len(b))...) }

// inetChains are the chains of the table of family inet. Those at hooks that all packets pass look at the port alone, and
// at the addresses where connections inside the network are not tracked.
func inetChains(f backend.Filter) []nftChain {
	settings, _ := f.Comments()
	chains := []nftChain{{name: settingsChain, comment: settings}}
	input := nftChain{name: "input", comment: "VXLAN of this network passes the guard", kind: "filter", hook: unix.NF_INET_LOCAL_IN, priority: rawPriority}
	before := nftChain{name: "prerouting", comment: "what comes in", kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: rawPriority}
	output := nftChain{name: "output", comment: "what this host sends", kind: "filter", hook: unix.NF_INET_LOCAL_OUT, priority: rawPriority}
	if f.Port != 0 {
		if f.Guard != backend.GuardOff {
			chains = append(chains, guardChain(f))
			input.add("", toPort(f), jump("guard"))
		}
		chains = append(chains, arrivedChain(f))
		before.add("", toPort(f), jump("arrived"))
		output.add("outer packets are not tracked", toPort(f), ofNetwork(f), match(&expr.Notrack{}))
	}
	if len(f.Untracked()) > 0 {
		chains = append(chains, untracked(f))
		before.add("", jump(untrackedChain))
		output.add("", jump(untrackedChain))
	}
	for _, c := range []nftChain{input, before, output} {
		if len(c.rules) > 0 {
			chains = append(chains, c)
		}
	}
	if f.Masquerade {
		chains = append(chains, masqueradeChain(f))
	}
	return chains
}

// untrackedChain keeps connections inside the network from being tracked. Its comment says which.
const untrackedChain = "untracked"

func untracked(f backend.Filter) nftChain {
	_, inside := f.Comments()
	c := nftChain{name: untrackedChain, comment: inside}
	for _, p := range f.Untracked() {
		c.add("inside the network", nfproto(!p.Addr().Is4()), within(p, true), within(p, false), match(&expr.Notrack{}))
	}
	return c
}

// within matches packets whose source or destination is in the prefix, in nft's own words: a prefix of whole bytes is a
// shorter field.
func within(p netip.Prefix, source bool) []expr.Any {
	first, _ := interval(p)
	field, ok := address(!p.Addr().Is4(), source).(*expr.Payload)
	if !ok {
		return nil
	}
	whole, rest := p.Bits()/8, p.Bits()%8
	if rest == 0 {
		field.Len = uint32(whole)
		return match(field, equal(first[:whole]...))
	}
	bits := make([]byte, len(first))
	for i := range p.Bits() {
		bits[i/8] |= 0x80 >> (i % 8)
	}
	return match(field, mask(bits...), equal(first...))
}

// arrivedChain is for outer packets that come in.
func arrivedChain(f backend.Filter) nftChain {
	c := nftChain{name: "arrived", comment: "VXLAN, from whom it may come and to whom it goes"}
	if f.Guard != backend.GuardOff {
		noVXLANFromPods(&c, f)
	}
	c.add("outer packets are not tracked", ofNetwork(f), toUs(f), match(&expr.Notrack{}))
	return c
}

// noVXLANFromPods keeps pods from posing as hosts, also behind the masquerade of this one.
func noVXLANFromPods(c *nftChain, f backend.Filter) {
	if f.Bridge != "" {
		c.add("pods send no VXLAN of this network", iifname(f.Bridge), ofNetwork(f), drop("pod_vxlan"))
		return
	}
	for _, fam := range familiesOf(f) {
		c.add("pods send no VXLAN of this network", nfproto(fam.six), match(address(fam.six, true), inSet(backend.SetOwn+fam.digit)), ofNetwork(f), drop("pod_vxlan"))
	}
}

// guardChain accepts what a lease holder may send. It is at the input hook, where fragments are put together again.
func guardChain(f backend.Filter) nftChain {
	c := nftChain{name: "guard", comment: "only hosts with a lease, only what is theirs"}
	udp := expr.PayloadBaseTransportHeader
	c.add("another network's", match(vni(), differ(be24(f.VNI)...)), verdict(expr.VerdictReturn))
	c.add("no VNI in it", match(load(udp, atFlags, 1, reg1), mask(vxlanHasVNI), differ(vxlanHasVNI)), drop("malformed"))
	c.add("broadcast or multicast inside", match(load(udp, atInnerMAC, 1, reg1), mask(groupAddress), equal(groupAddress)), drop("not_unicast"))
	if f.Guard == backend.GuardVTEP {
		c.add("from a host with a lease", nfproto(f.Outer6), match(address(f.Outer6, true), inSet(backend.SetVTEPs+outerDigit(f))), verdict(expr.VerdictAccept))
	} else {
		for _, fam := range familiesOf(f) {
			for _, s := range pairSetsOf(f, fam.six) {
				c.add(s.reason, match(load(udp, atInnerType, 2, reg1), equal(be16(fam.etherType)...)), nfproto(f.Outer6),
					match(address(f.Outer6, true), load(udp, atInnerSource(fam.six), s.length, regBehind(f.Outer6)), inSet(s.name)), verdict(expr.VerdictAccept))
			}
		}
	}
	c.add("from anybody else", drop("stranger"))
	return c
}

func atInnerSource(six bool) uint32 {
	if six {
		return atInnerSrc6
	}
	return atInnerSrc4
}

// regBehind is the register after that of an address in the first.
func regBehind(six bool) uint32 {
	if six {
		return reg2
	}
	return reg32 + 1
}

// masqueradeChain gives pods' packets to outside the network the host's address.
func masqueradeChain(f backend.Filter) nftChain {
	c := nftChain{name: "postrouting", comment: "pods leave the network with the host's address", kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: srcnatPriority}
	mark := binary.NativeEndian.AppendUint32(nil, markMasquerade)
	c.add("kube-proxy masquerades these itself", match(meta(expr.MetaKeyMARK), mask(mark...), equal(mark...)), verdict(expr.VerdictReturn))
	low, high := uint16(firstPort), uint16(lastPort)
	if f.Port >= firstPort {
		low, high = unprivilegedPort, f.Port-1
	}
	for _, fam := range familiesOf(f) {
		pods := append(nfproto(fam.six), address(fam.six, true), inSet(backend.SetOwn+fam.digit))
		to := address(fam.six, false)
		c.add("never inside the network", pods, match(to, inSet(backend.SetPool+fam.digit)), verdict(expr.VerdictReturn))
		c.add("nor to groups", pods, fam.toGroups, verdict(expr.VerdictReturn))
		c.add("nor where --masq-exclude says", pods, match(to, inSet(backend.SetExclude+fam.digit)), verdict(expr.VerdictReturn))
		if f.Port == 0 {
			c.add("", pods, match(&expr.Masq{FullyRandom: true}))
			continue
		}
		c.add("never with the VXLAN port as source", pods, l4proto(unix.IPPROTO_UDP), match(
			&expr.Immediate{Register: reg1, Data: be16(low)}, &expr.Immediate{Register: reg2, Data: be16(high)},
			&expr.Masq{ToPorts: true, RegProtoMin: reg1, RegProtoMax: reg2, FullyRandom: true}))
		c.add("", pods, match(&expr.Masq{FullyRandom: true}))
	}
	return c
}

// settingsChain holds no rule: its comment says what the table was made for.
const settingsChain = "settings"

func chainsOf(t backend.Table) []nftChain {
	if t.Family == backend.FamilyBridge {
		return bridgeChains(t.Filter)
	}
	return inetChains(t.Filter)
}

// nftCounter counts what is dropped for one reason.
type nftCounter struct{ name, comment string }

func countersOf(family string) []nftCounter {
	if family == backend.FamilyBridge {
		return []nftCounter{{"spoofed", "with an address or MAC that is not the pod's"}, {"router_advert", "router advertisements and redirects from pods"}}
	}
	return []nftCounter{
		{"malformed", "VXLAN without VNI"}, {"not_unicast", "VXLAN with a broadcast or multicast inside"},
		{"stranger", "VXLAN from a host without a lease, or with a source that is another's"}, {"pod_vxlan", "VXLAN from pods"},
	}
}

// interval is the first and the last address of a prefix.
func interval(p netip.Prefix) (first, last []byte) {
	first = p.Masked().Addr().AsSlice()
	last = p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return first, last
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
