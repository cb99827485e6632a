package kernel

import (
	"encoding/binary"
	"errors"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// reading is what was read of others' chains and sets: each of them once. Of sets, which can be huge, the kernel is asked for
// single elements.
type reading struct {
	kernel   *Kernel
	rules    map[place][]*nftables.Rule
	sets     map[place]foreignSet
	elements map[keyPlace]judged
}

// place is where a chain or a set is.
type place struct {
	family      uint8
	table, name string
}

// foreignSet is how a set of somebody's is made.
type foreignSet struct {
	keyLength int  // bytes; 0: it cannot be read
	interval  bool // its elements are ranges
	grows     bool // rules add to it
}

// keyPlace is a key in a set.
type keyPlace struct {
	place
	key string
}

// judged is what the kernel says of a key.
type judged struct {
	setElement
	is answer
}

// setElement is one of a set, or of a map from keys to verdicts.
type setElement struct {
	verdict     *expr.Verdict
	conditional bool // it has a limit, a quota or the like, which may not let it match
}

func (k *Kernel) newReading() *reading {
	return &reading{kernel: k, rules: map[place][]*nftables.Rule{}, sets: map[place]foreignSet{}, elements: map[keyPlace]judged{}}
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

// setOf says how a set is made; false when that cannot be read.
func (r *reading) setOf(set place) (foreignSet, bool) {
	if s, ok := r.sets[set]; ok {
		return s, s.keyLength > 0
	}
	req := r.request(unix.NFT_MSG_GETSET, set.family)
	req.AddData(text(unix.NFTA_SET_TABLE, set.table))
	req.AddData(text(unix.NFTA_SET_NAME, set.name))
	var s foreignSet
	err := r.kernel.nft.get(req, func(body []byte) {
		for kind, value := range attributes(body[min(len(body), sizeofNfgenmsg):]) {
			switch kind {
			case unix.NFTA_SET_KEY_LEN:
				s.keyLength = int(be32Of(value))
			case unix.NFTA_SET_FLAGS:
				s.interval, s.grows = be32Of(value)&unix.NFT_SET_INTERVAL != 0, be32Of(value)&unix.NFT_SET_EVAL != 0
			}
		}
	})
	if err != nil {
		s.keyLength = 0
	}
	r.sets[set] = s
	return s, s.keyLength > 0
}

func (r *reading) request(kind int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, 0)
	req.AddData(nfgenmsg{family: family})
	return req
}

// element asks the kernel for the element of a set that a key meets: its own, that of an interval around it, or the one that
// everything else meets.
func (r *reading) element(set place, key []byte) (setElement, answer) {
	at := keyPlace{set, string(key)}
	if j, ok := r.elements[at]; ok {
		return j.setElement, j.is
	}
	const catchAll = 2 // NFT_SET_ELEM_CATCHALL
	value := newAttrs().add(unix.NFTA_DATA_VALUE, key)
	j, err := r.one(set, newAttrs().add(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, value))
	if errors.Is(err, unix.ENOENT) {
		j, err = r.one(set, newAttrs().network(unix.NFTA_SET_ELEM_FLAGS, catchAll))
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL): // a kernel before 5.13 has no such element
		j = judged{is: no}
	default:
		j = judged{is: perhaps}
	}
	r.elements[at] = j
	return j.setElement, j.is
}

// one asks for the element that is described.
func (r *reading) one(set place, description attrs) (judged, error) {
	req := r.request(unix.NFT_MSG_GETSETELEM, set.family)
	req.AddData(text(unix.NFTA_SET_ELEM_LIST_TABLE, set.table))
	req.AddData(text(unix.NFTA_SET_ELEM_LIST_SET, set.name))
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, newAttrs().add(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, description)))
	j := judged{is: perhaps}
	err := r.kernel.nft.get(req, func(body []byte) {
		for kind, value := range attributes(body[min(len(body), sizeofNfgenmsg):]) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, element := range attributes(value) {
				j = judged{foreignElement(element), yes}
			}
		}
	})
	return j, err
}

func foreignElement(attrs []byte) (e setElement) {
	const single, several = 7, 11 // NFTA_SET_ELEM_EXPR, NFTA_SET_ELEM_EXPRESSIONS
	for kind, value := range attributes(attrs) {
		switch kind {
		case unix.NFTA_SET_ELEM_DATA:
			for kind, value := range attributes(value) {
				if kind == unix.NFTA_DATA_VERDICT {
					e.verdict = verdictOf(value)
				}
			}
		case single:
			e.conditional = e.conditional || !isCounter(value)
		case several:
			for _, one := range attributes(value) {
				e.conditional = e.conditional || !isCounter(one)
			}
		}
	}
	return e
}

// isCounter says whether an expression only counts.
func isCounter(attrs []byte) bool {
	for kind, value := range attributes(attrs) {
		if kind == unix.NFTA_EXPR_NAME {
			return unix.ByteSliceToString(value) == "counter"
		}
	}
	return false
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

// generation is the number of nf_tables' last transaction, of any table.
func (k *Kernel) generation() (uint32, error) {
	var id uint32
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(nfgenmsg{})
	err := k.nft.get(req, func(body []byte) {
		for kind, value := range attributes(body[min(len(body), sizeofNfgenmsg):]) {
			if kind == unix.NFTA_GEN_ID && len(value) >= 4 {
				id = binary.BigEndian.Uint32(value)
			}
		}
	})
	return id, err
}

// dormant lists tables whose chains see no packets.
func (k *Kernel) dormant() (map[place]bool, error) {
	all := map[place]bool{}
	err := k.nftDump(unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC, "", "", func(family uint8, attrs []byte) {
		at := place{family: family}
		var flags uint32
		for kind, value := range attributes(attrs) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				at.table = unix.ByteSliceToString(value)
			case unix.NFTA_TABLE_FLAGS:
				flags = be32Of(value)
			}
		}
		if flags&unix.NFT_TABLE_F_DORMANT != 0 {
			all[at] = true
		}
	})
	return all, err
}
