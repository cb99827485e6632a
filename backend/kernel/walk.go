package kernel

import (
	"bytes"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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

// reading is what was read of others' chains and sets: each of them once.
type reading struct {
	kernel *Kernel
	rules  map[place][]*nftables.Rule
	sets   map[place][]setElement
}

// place is where a chain or a set is.
type place struct {
	family      uint8
	table, name string
}

func (k *Kernel) newReading() *reading {
	return &reading{kernel: k, rules: map[place][]*nftables.Rule{}, sets: map[place][]setElement{}}
}

func (r *reading) rulesOf(chain place) ([]*nftables.Rule, error) {
	rules, ok := r.rules[chain]
	var err error
	if !ok {
		if rules, err = r.kernel.rulesOf(chain.family, chain.table, chain.name); err == nil {
			r.rules[chain] = rules
		}
	}
	return rules, err
}

// elementsOf returns nil for a set that cannot be read.
func (r *reading) elementsOf(set place) []setElement {
	all, ok := r.sets[set]
	if !ok {
		all = r.kernel.elementsOf(set)
		r.sets[set] = all
	}
	return all
}

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

func (w *walk) chain(name string) fate {
	rules, err := w.rulesOf(place{w.family, w.table, name})
	if err != nil || w.depth == deepest {
		w.doubt = true
		return passes
	}
	w.depth++
	defer func() { w.depth-- }()
	for _, r := range rules {
		if w.past != nil && w.past(r) {
			continue
		}
		end, done := w.rule(r)
		if done {
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
		if v != nil {
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
	case expr.VerdictContinue:
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
	case *expr.Counter, *expr.Log, *expr.Notrack:
		return nil, yes
	case *expr.Meta:
		if !e.SourceRegister {
			w.regs.load(e.Register, w.packet.meta(e.Key))
		}
		return nil, yes
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			w.regs.load(e.DestRegister, w.packet.payload(e.Base, e.Offset, e.Len))
		}
		return nil, yes
	case *expr.Ct:
		return nil, w.ct(e)
	case *expr.Bitwise:
		w.regs.bitwise(e)
		return nil, yes
	case *expr.Cmp:
		return nil, w.regs.compare(e)
	case *expr.Range:
		return nil, w.regs.within(e)
	case *expr.Lookup:
		return w.lookup(e)
	case *expr.Match:
		return nil, w.packet.match(e)
	case *expr.Target:
		return target(e)
	}
	return nil, perhaps
}

// ct loads what the kernel's connection tracking knows of the packet. Outer packets are not tracked (we see to it): there only
// the state can be asked for, and anything else ends the rule (net/netfilter/nft_ct.c).
func (w *walk) ct(e *expr.Ct) answer {
	if e.SourceRegister {
		return yes
	}
	switch {
	case e.Key == expr.CtKeySTATE:
		w.regs.load(e.Register, native(w.packet.state))
	case w.packet.state == stateUntracked:
		return no
	case e.Key == expr.CtKeySTATUS: // a new connection, that nobody has translated
		w.regs.load(e.Register, native(0))
	default:
		w.regs.load(e.Register, nil)
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

// setElement is one of a set, or of a map from keys to verdicts.
type setElement struct {
	nftElement
	end     bool // it only says where an interval ends
	verdict *expr.Verdict
}

func (w *walk) lookup(e *expr.Lookup) (*expr.Verdict, answer) {
	found, a := w.regs.among(e.SourceRegister, w.elementsOf(place{w.family, w.table, e.SetName}))

	const mapped = 0 // the register of verdicts (NFT_REG_VERDICT)
	switch {
	case !e.IsDestRegSet && e.Invert:
		return nil, yes - a
	case !e.IsDestRegSet:
		return nil, a
	case e.DestRegister != mapped:
		w.regs.load(e.DestRegister, nil)
		return nil, a
	case a == yes && found.verdict != nil:
		return found.verdict, yes
	case a == no:
		return nil, no
	}
	return &expr.Verdict{Kind: expr.VerdictAccept}, perhaps // any of its verdicts
}

// elementsOf reads a set of somebody's; nil when it cannot be read.
func (k *Kernel) elementsOf(set place) []setElement {
	all := []setElement{}
	err := k.nftDump(unix.NFT_MSG_GETSETELEM, set.family, set.table, set.name, func(_ uint8, attrs []byte) {
		for kind, value := range attributes(attrs) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, element := range attributes(value) {
				all = append(all, foreignElement(element))
			}
		}
	})
	if err != nil {
		return nil
	}
	return all
}

func foreignElement(attrs []byte) setElement {
	var e setElement
	e.nftElement, e.end = elementFrom(bytes.Clone(attrs)) // the next message comes to the same place
	for kind, value := range attributes(attrs) {
		if kind != unix.NFTA_SET_ELEM_DATA {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == unix.NFTA_DATA_VERDICT {
				e.verdict = verdictOf(value)
			}
		}
	}
	return e
}

func verdictOf(attrs []byte) *expr.Verdict {
	var v expr.Verdict
	for kind, value := range attributes(attrs) {
		switch kind {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(be32Of(value)))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(value)
		}
	}
	return &v
}
