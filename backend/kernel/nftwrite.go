package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// nfgenmsg is struct nfgenmsg (linux/netfilter/nfnetlink.h).
type nfgenmsg struct {
	family   uint8
	resource uint16
}

const sizeofNfgenmsg = 4

// Len implements [nl.NetlinkRequestData].
func (nfgenmsg) Len() int { return sizeofNfgenmsg }

// Serialize implements [nl.NetlinkRequestData].
func (m nfgenmsg) Serialize() []byte {
	return binary.BigEndian.AppendUint16([]byte{m.family, unix.NFNETLINK_V0}, m.resource)
}

// familyNumber is nft's family of a table.
func familyNumber(family string) uint8 {
	switch family {
	case backend.FamilyBridge:
		return unix.NFPROTO_BRIDGE
	case "ip":
		return unix.NFPROTO_IPV4
	case "ip6":
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_INET
}

// nftRequest is a message to nf_tables about the table of a family.
func nftRequest(kind, flags int, family, table string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(nfgenmsg{family: familyNumber(family)})
	if table != "" {
		req.AddData(text(unix.NFTA_TABLE_NAME, table)) // attribute 1 of every kind of message
	}
	return req
}

func text(kind int, s string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(s)) }

func number(kind int, v uint32) *nl.RtAttr {
	return nl.NewRtAttr(kind, binary.BigEndian.AppendUint32(nil, v))
}

func nested(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, c := range children {
		a.AddChild(c)
	}
	return a
}

// comment is the user data that nft prints as a comment. Its kind is 0 except in sets.
func comment(s string) []byte {
	return userdata.Append(nil, userdata.TypeComment, append([]byte(s), 0))
}

// create makes a new thing and fails if there is one; ensure does not.
const (
	create = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	ensure = unix.NLM_F_CREATE
)

func setRequest(family string, s nftSet, id uint32) *nl.NetlinkRequest {
	req := nftRequest(unix.NFT_MSG_NEWSET, create, family, backend.TableName)
	for _, a := range []*nl.RtAttr{
		text(unix.NFTA_SET_NAME, s.name), number(unix.NFTA_SET_FLAGS, s.flags()), number(unix.NFTA_SET_KEY_TYPE, s.keyType()),
		number(unix.NFTA_SET_KEY_LEN, s.keyLength()), number(unix.NFTA_SET_ID, id),
	} {
		req.AddData(a)
	}
	if s.concat() && s.interval {
		const descConcat, fieldLength = 2, 1 // NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN
		var fields []*nl.RtAttr
		for _, f := range s.fields {
			fields = append(fields, nested(unix.NFTA_LIST_ELEM, number(fieldLength, f.length)))
		}
		req.AddData(nested(unix.NFTA_SET_DESC, nested(descConcat, fields...)))
	}
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_USERDATA, s.userData()))
	return req
}

func chainRequest(family string, c nftChain) *nl.NetlinkRequest {
	req := nftRequest(unix.NFT_MSG_NEWCHAIN, create, family, backend.TableName)
	req.AddData(text(unix.NFTA_CHAIN_NAME, c.name))
	if c.kind != "" {
		req.AddData(nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook)), number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))))
		req.AddData(number(unix.NFTA_CHAIN_POLICY, nfAccept))
		req.AddData(text(unix.NFTA_CHAIN_TYPE, c.kind))
	}
	const userData = 12 // NFTA_CHAIN_USERDATA
	req.AddData(nl.NewRtAttr(userData, comment(c.comment)))
	return req
}

// Verdicts of netfilter (linux/netfilter.h).
const nfDrop, nfAccept = 0, 1

// ruleRequest appends a rule to a chain, or with insert puts it before the others.
func ruleRequest(family, table, chain string, r nftRule, insert bool) (*nl.NetlinkRequest, error) {
	flags := unix.NLM_F_CREATE | unix.NLM_F_APPEND
	if insert {
		flags = unix.NLM_F_CREATE
	}
	req := nftRequest(unix.NFT_MSG_NEWRULE, flags, family, table)
	req.AddData(text(unix.NFTA_RULE_CHAIN, chain))
	list := nested(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range r.exprs {
		b, err := encodeExpr(family, e)
		if err != nil {
			return nil, fmt.Errorf("rule of chain %s: %w", chain, err)
		}
		list.AddChild(nl.NewRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b))
	}
	req.AddData(list)
	if r.comment != "" {
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_USERDATA, comment(r.comment)))
	}
	return req, nil
}

// encodeExpr returns the expression as the kernel takes it. The library leaves the flags of a masquerade out when it has
// ports.
func encodeExpr(family string, e expr.Any) ([]byte, error) {
	m, ok := e.(*expr.Masq)
	if !ok || !m.ToPorts || !m.FullyRandom {
		return expr.Marshal(familyNumber(family), e)
	}
	name := text(unix.NFTA_EXPR_NAME, "masq").Serialize()
	data := nested(unix.NFTA_EXPR_DATA,
		number(unix.NFTA_MASQ_FLAGS, expr.NF_NAT_RANGE_PROTO_RANDOM_FULLY|unix.NF_NAT_RANGE_PROTO_SPECIFIED),
		number(unix.NFTA_MASQ_REG_PROTO_MIN, m.RegProtoMin), number(unix.NFTA_MASQ_REG_PROTO_MAX, m.RegProtoMax)).Serialize()
	return append(name, data...), nil
}

func counterRequest(family string, c nftCounter, value counted) *nl.NetlinkRequest {
	req := nftRequest(unix.NFT_MSG_NEWOBJ, ensure, family, backend.TableName)
	req.AddData(text(unix.NFTA_OBJ_NAME, c.name))
	req.AddData(number(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER))
	req.AddData(nested(unix.NFTA_OBJ_DATA,
		nl.NewRtAttr(unix.NFTA_COUNTER_BYTES, be64(value.bytes)),
		nl.NewRtAttr(unix.NFTA_COUNTER_PACKETS, be64(value.packets))))
	const userData = 8 // NFTA_OBJ_USERDATA
	req.AddData(nl.NewRtAttr(userData, comment(c.comment)))
	return req
}

// elementRequest adds or removes an element.
func elementRequest(kind int, e nftElement) *nl.NetlinkRequest {
	const keyEnd, everything = 10, 2 // NFTA_SET_ELEM_KEY_END, NFT_SET_ELEM_CATCHALL
	b := append(newAttrs(), nfgenmsg{family: familyNumber(e.family)}.Serialize()...)
	b = b.text(unix.NFTA_TABLE_NAME, backend.TableName).text(unix.NFTA_SET_ELEM_LIST_SET, e.set)
	b, list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	b, first := b.nest(unix.NFTA_LIST_ELEM)
	if e.first == nil {
		b = b.network(unix.NFTA_SET_ELEM_FLAGS, everything)
	} else {
		b = b.key(unix.NFTA_SET_ELEM_KEY, e.first)
	}
	if e.comment != "" {
		b = b.add(unix.NFTA_SET_ELEM_USERDATA, comment(e.comment))
	}
	concat := concatSet(e.set)
	if e.last != nil && concat {
		b = b.key(keyEnd, e.last)
	}
	b = b.end(first)
	if e.last != nil && !concat { // an interval is two elements: where it begins, and where it has ended; an end alone would overlap the one before
		if after, ok := next(e.last); ok {
			var end int
			b, end = b.nest(unix.NFTA_LIST_ELEM)
			b = b.network(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END).key(unix.NFTA_SET_ELEM_KEY, after).end(end)
		}
	}
	return b.end(list).request(unix.NFNL_SUBSYS_NFTABLES<<8|kind, ensure)
}

// key appends a key of an element.
func (b attrs) key(kind int, key []byte) attrs {
	b, at := b.nest(kind)
	return b.add(unix.NFTA_DATA_VALUE, key).end(at)
}

// concatSet says whether the set of that name in family inet has intervals in keys of several parts.
func concatSet(name string) bool { return name == backend.SetPeers+"4" || name == backend.SetPeers+"6" }

// next returns the key after b; false when there is none.
func next(b []byte) ([]byte, bool) {
	n := append([]byte(nil), b...)
	for i := len(n) - 1; i >= 0; i-- {
		if n[i]++; n[i] != 0 {
			return n, true
		}
	}
	return nil, false
}

// clear removes all rules, then what they used: sets that are not wanted as they are, which may lead to chains, and chains.
func (t tableState) clear(family string, wanted []nftSet) []*nl.NetlinkRequest {
	reqs := []*nl.NetlinkRequest{nftRequest(unix.NFT_MSG_DELRULE, 0, family, backend.TableName)}
	remove := func(kind, attr int, name string) {
		req := nftRequest(kind, 0, family, backend.TableName)
		req.AddData(text(attr, name))
		reqs = append(reqs, req)
	}
	for name := range t.sets {
		if !t.stays(name, wanted) {
			remove(unix.NFT_MSG_DELSET, unix.NFTA_SET_NAME, name)
		}
	}
	for _, c := range t.chains {
		remove(unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_NAME, c.name)
	}
	return reqs
}

// keeps says whether the set is there as wanted.
func (t tableState) keeps(s nftSet) bool {
	old, there := t.sets[s.name]
	return there && old.same(s)
}

// stays says whether the set of that name is one of those that are wanted, and as wanted.
func (t tableState) stays(name string, wanted []nftSet) bool {
	return slices.ContainsFunc(wanted, func(s nftSet) bool { return s.name == name && t.keeps(s) })
}

// tableRequests make a table, or mend the one that is there: its sets, with what they hold, and its counters stay if they
// can. Chains and rules are always made anew.
func (k *Kernel) tableRequests(t backend.Table) ([]*nl.NetlinkRequest, error) {
	have, err := k.readTable(t.Family)
	if err != nil {
		return nil, err
	}
	sets := setsOf(t)
	table := nftRequest(unix.NFT_MSG_NEWTABLE, ensure, t.Family, backend.TableName)
	const userData = 6 // NFTA_TABLE_USERDATA
	table.AddData(nl.NewRtAttr(userData, comment("made by overlayd, which undoes what is changed here")))
	table.AddData(number(unix.NFTA_TABLE_FLAGS, 0))
	reqs := []*nl.NetlinkRequest{table}
	switch {
	case have.dormant():
		return reqs, nil // it wakes up; what else is wrong, if anything is, cannot be changed in the same transaction
	case have.exists:
		reqs = append(reqs, have.clear(t.Family, sets)...)
	}
	for i, s := range sets {
		if !have.keeps(s) {
			reqs = append(reqs, setRequest(t.Family, s, uint32(i+1)))
		}
	}
	for _, c := range countersOf(t.Family) {
		if _, there := have.counters[c.name]; !there {
			reqs = append(reqs, counterRequest(t.Family, c, k.counted[c.name]))
		}
	}
	chains := chainsOf(t)
	for _, c := range chains {
		reqs = append(reqs, chainRequest(t.Family, c))
	}
	for _, c := range chains {
		for _, r := range c.rules {
			req, err := ruleRequest(t.Family, backend.TableName, c.name, r, false)
			if err != nil {
				return nil, err
			}
			reqs = append(reqs, req)
		}
	}
	return reqs, nil
}

// nftRequests are the messages of one change. What is in a set that goes with the change of its table goes with the set.
func (k *Kernel) nftRequests(c backend.Change, going map[setID]bool) ([]*nl.NetlinkRequest, error) {
	if t, ok := c.Row().(backend.Table); ok {
		if c.New == nil {
			return []*nl.NetlinkRequest{nftRequest(unix.NFT_MSG_DELTABLE, 0, t.Family, backend.TableName)}, nil
		}
		return k.tableRequests(t)
	}
	if a, ok := c.Row().(backend.Accept); ok {
		return k.acceptRequests(a, c.New != nil)
	}
	var reqs []*nl.NetlinkRequest
	if e, ok := elementOf(c.Old); ok && !going[setID{e.family, e.set}] {
		reqs = append(reqs, elementRequest(unix.NFT_MSG_DELSETELEM, e))
	}
	if e, ok := elementOf(c.New); ok {
		reqs = append(reqs, elementRequest(unix.NFT_MSG_NEWSETELEM, e))
	}
	return reqs, nil
}

// setID names a set of ours.
type setID struct{ family, name string }

// goingSets are the sets that changes of tables remove, with the tables or because others take their place. To remove their
// elements besides would be refused, and one by one it would take the kernel the square of their number.
func (k *Kernel) goingSets(changes []backend.Change) (map[setID]bool, error) {
	going := map[setID]bool{}
	for _, c := range changes {
		t, ok := c.Row().(backend.Table)
		if !ok {
			continue
		}
		have, err := k.readTable(t.Family)
		if err != nil {
			return nil, err
		}
		var wanted []nftSet
		if c.New != nil {
			wanted = setsOf(t)
		}
		for name := range have.sets {
			going[setID{t.Family, name}] = !have.stays(name, wanted)
		}
	}
	return going, nil
}

// filter makes changes of the nft tables, all in one transaction if nf_tables takes it: a part that it refuses is found by
// halves.
func (k *Kernel) filter(changes []backend.Change) []error {
	going, err := k.goingSets(changes)
	if err != nil {
		return slices.Repeat([]error{err}, len(changes))
	}
	return k.halve(changes, going)
}

func (k *Kernel) halve(changes []backend.Change, going map[setID]bool) []error {
	errs := make([]error, len(changes))
	var reqs []*nl.NetlinkRequest
	for i, c := range changes {
		part, err := k.nftRequests(c, going)
		if err != nil {
			errs[i] = err
			continue
		}
		reqs = append(reqs, part...)
	}
	err := k.nft.transaction(reqs)
	switch {
	case err == nil:
		return errs
	case len(changes) > 1 && !errors.Is(err, unix.EPERM):
		half := (len(changes) + 1) / 2
		return append(k.halve(changes[:half], going), k.halve(changes[half:], going)...)
	}
	for i := range errs {
		errs[i] = errors.Join(errs[i], err)
	}
	return errs
}
