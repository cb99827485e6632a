package kernel

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// answer is what can be said of a rule without sending a packet: others' rules may ask for what we do not know.
type answer int

const (
	no answer = iota
	perhaps
	yes
)

// fate is what becomes of a packet in a chain.
type fate int

const (
	passes  fate = iota // it reaches the end of the chain, or returns
	accepts             // for this base chain
	drops
)

// walk follows a packet through somebody's chains.
type walk struct {
	*reading
	family uint8
	table  string
	packet packet
	past   func(*nftables.Rule) bool // rules that are looked over; nil: none

	regs  registers
	doubt bool // something that we cannot judge may let the packet through
	depth int
	fates map[string]fate // of chains that were followed: the packet is the same
}

// deepest is how far chains may jump (net/netfilter, NFT_JUMP_STACK_SIZE).
const deepest = 16

// base says whether the base chain drops the packet for certain.
func (w *walk) base(c chainState) bool {
	end := w.chain(c.name)
	if end == passes && c.policy == nfDrop {
		end = drops
	}
	return end == drops && !w.doubt
}

// chain returns what becomes of the packet in the chain. Once there is doubt that no longer matters.
func (w *walk) chain(name string) (end fate) {
	if end, ok := w.fates[name]; ok {
		return end
	}
	rules, err := w.rulesOf(place{w.family, w.table, name})
	if err != nil || w.depth == deepest {
		w.doubt = true
	}
	w.depth++
	defer func() {
		w.depth--
		w.fates[name] = end
	}()
	for _, r := range rules {
		if w.doubt {
			return passes
		}
		if w.past != nil && w.past(r) {
			continue
		}
		if end, done := w.rule(r); done {
			return end
		}
	}
	return passes
}

// rule says what a rule does to the packet, and whether that ends the chain.
func (w *walk) rule(r *nftables.Rule) (end fate, done bool) {
	w.regs = registers{}
	meets := yes
	for _, e := range r.Exprs {
		v, a := w.judge(e)
		meets = min(meets, a)
		if meets == no {
			return passes, false
		}
		if v != nil && v.Kind != expr.VerdictContinue {
			return w.verdict(v, meets)
		}
	}
	return passes, false
}

func (w *walk) verdict(v *expr.Verdict, meets answer) (end fate, done bool) {
	switch v.Kind {
	case expr.VerdictAccept:
		end, done = accepts, true
	case expr.VerdictDrop:
		end, done = drops, true
	case expr.VerdictReturn:
		end, done = passes, true
	case expr.VerdictJump:
		end = w.chain(v.Chain)
		done = end != passes
	case expr.VerdictGoto:
		end, done = w.chain(v.Chain), true
	default: // a queue's program decides
		meets, done = perhaps, true
	}
	if done && meets == perhaps {
		w.doubt = w.doubt || end != drops
		return passes, false
	}
	return end, done
}

// judge says whether the packet meets an expression, and what follows if that is a verdict.
func (w *walk) judge(e expr.Any) (*expr.Verdict, answer) {
	switch e := e.(type) {
	case *expr.Verdict:
		return e, yes
	case *expr.Reject:
		return &expr.Verdict{Kind: expr.VerdictDrop}, yes
	case *expr.Queue, *expr.SynProxy: // a program decides, or the kernel later
		return &expr.Verdict{Kind: expr.VerdictQueue}, yes
	case *expr.Counter, *expr.Log, *expr.Notrack:
		return nil, yes
	case *expr.Objref:
		return object(e)
	case *expr.Immediate:
		w.regs.load(e.Register, known(e.Data))
		return nil, yes
	case *expr.Meta:
		if !e.SourceRegister {
			w.regs.load(e.Register, w.packet.meta(e.Key))
		}
		return nil, yes
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			w.regs.load(e.DestRegister, w.packet.payload(e.Base, e.Offset, e.Len))
			return nil, yes
		}
		return &expr.Verdict{Kind: expr.VerdictQueue}, yes // what follows sees another packet
	case *expr.Ct:
		return nil, w.ct(e)
	case *expr.Bitwise:
		w.regs.bitwise(e)
		return nil, yes
	case *expr.Cmp:
		return nil, w.regs.compare(e)
	case *expr.Range:
		a := w.regs.within(e)
		w.regs = registers{}
		return nil, a
	case *expr.Lookup:
		return w.lookup(e)
	case *expr.Match:
		return nil, w.packet.match(e)
	case *expr.Target:
		return target(e)
	}
	w.regs = registers{} // what it may have loaded
	return nil, perhaps
}

// ct loads what the kernel's connection tracking knows of the packet. Outer packets are not tracked (we see to it): there only
// the state can be asked for, and anything else ends the rule (net/netfilter/nft_ct.c).
func (w *walk) ct(e *expr.Ct) answer {
	if e.Register == 0 { // it sets
		return yes
	}
	switch {
	case e.Key == expr.CtKeySTATE:
		w.regs.load(e.Register, inOwnOrder(w.packet.state))
	case w.packet.state == stateUntracked:
		return no
	case e.Key == expr.CtKeySTATUS: // a new connection, that nobody has translated; whether anybody tried is told beyond the lowest byte
		status := inOwnOrder(0)
		for i, low := range native(0xff) {
			if low == 0 {
				status.sure[i] = unknownByte
			}
		}
		w.regs.load(e.Register, status)
	default:
		w.regs.load(e.Register, field{})
	}
	return yes
}

// target judges what iptables adds to a rule.
func target(e *expr.Target) (*expr.Verdict, answer) {
	switch e.Name {
	case "REJECT":
		return &expr.Verdict{Kind: expr.VerdictDrop}, yes
	case "LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "CT", "CLASSIFY", "TCPMSS":
		return nil, yes
	}
	return &expr.Verdict{Kind: expr.VerdictAccept}, perhaps
}

// object judges a reference to an object by its kind (include/uapi/linux/netfilter/nf_tables.h, NFT_OBJECT_*).
func object(e *expr.Objref) (*expr.Verdict, answer) {
	const counter, quota, helper, limit, connlimit, timeout, secmark = 1, 2, 3, 4, 5, 7, 8
	switch e.Type {
	case counter, helper, timeout, secmark:
		return nil, yes
	case quota, limit, connlimit:
		return nil, perhaps
	}
	return &expr.Verdict{Kind: expr.VerdictQueue}, yes
}

func (w *walk) lookup(e *expr.Lookup) (*expr.Verdict, answer) {
	found, a := w.among(e)
	w.regs = registers{}
	const mapped = 0 // the register of verdicts (NFT_REG_VERDICT)
	switch {
	case !e.IsDestRegSet && e.Invert:
		return nil, yes - a
	case !e.IsDestRegSet:
		return nil, a
	case e.DestRegister != mapped:
		w.regs.load(e.DestRegister, field{})
		return nil, a
	case a == yes && found.verdict != nil:
		return found.verdict, yes
	case a == no:
		return nil, no
	}
	return &expr.Verdict{Kind: expr.VerdictAccept}, perhaps // any of its verdicts
}

// among says whether a register's value is in a set.
func (w *walk) among(e *expr.Lookup) (setElement, answer) {
	set := place{w.family, w.table, e.SetName}
	about, ok := w.setOf(set)
	if !ok {
		return setElement{}, perhaps
	}
	key, sure := w.regs.value(e.SourceRegister, about.keyLength)
	if sure == unknownByte {
		return setElement{}, perhaps
	}
	found, a := w.element(set, key)
	switch {
	case a == yes && (found.conditional || sure == vagueByte):
		a = perhaps
	case a == no && (about.grows || about.interval && sure != knownByte):
		a = perhaps
	}
	return found, a
}
