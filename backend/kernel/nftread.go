package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// counted is a counter's value.
type counted struct{ packets, bytes uint64 }

// chainState is a chain as it is.
type chainState struct {
	family                     uint8
	table, name, kind, comment string
	hook, priority             int32
	policy                     uint32
}

// setState is a set's definition as it is.
type setState struct {
	flags, keyType, keyLength uint32
	userData                  []byte
}

func (s setState) same(want nftSet) bool {
	return s.flags == want.flags() && s.keyType == want.keyType() && s.keyLength == want.keyLength() && bytes.Equal(s.userData, want.userData())
}

// tableState is one of our tables as it is.
type tableState struct {
	exists   bool
	flags    uint32
	chains   []chainState
	sets     map[string]setState
	counters map[string]counted
}

// dormant says whether its chains see no packets.
func (t tableState) dormant() bool { return t.flags&unix.NFT_TABLE_F_DORMANT != 0 }

// comment returns what a chain says of itself; false without that chain.
func (t tableState) comment(chain string) (string, bool) {
	for _, c := range t.chains {
		if c.name == chain {
			return c.comment, true
		}
	}
	return "", false
}

// nftDump calls each with the attributes of every answer about the table of a family; an empty table is all of them.
func (k *Kernel) nftDump(kind int, family uint8, table, set string, each func(family uint8, attrs []byte)) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, 0)
	req.AddData(nfgenmsg{family: family})
	if table != "" {
		req.AddData(text(unix.NFTA_TABLE_NAME, table))
	}
	if set != "" {
		req.AddData(text(unix.NFTA_SET_ELEM_LIST_SET, set))
	}
	return k.nft.dump(req, func(body []byte) {
		if len(body) >= sizeofNfgenmsg {
			each(body[0], body[sizeofNfgenmsg:])
		}
	})
}

func be32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func commentOf(data []byte) string {
	c, _ := userdata.GetString(data, userdata.TypeComment)
	return strings.TrimSuffix(c, "\x00")
}

// readChains lists the chains of all tables.
func (k *Kernel) readChains() ([]chainState, error) {
	var all []chainState
	err := k.nftDump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, "", "", func(family uint8, attrs []byte) {
		c := chainState{family: family, policy: nfAccept}
		for kind, value := range attributes(attrs) {
			const userData = 12 // NFTA_CHAIN_USERDATA
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				c.table = unix.ByteSliceToString(value)
			case unix.NFTA_CHAIN_NAME:
				c.name = unix.ByteSliceToString(value)
			case unix.NFTA_CHAIN_TYPE:
				c.kind = unix.ByteSliceToString(value)
			case unix.NFTA_CHAIN_POLICY:
				c.policy = be32Of(value)
			case userData:
				c.comment = commentOf(value)
			case unix.NFTA_CHAIN_HOOK:
				for kind, value := range attributes(value) {
					switch kind {
					case unix.NFTA_HOOK_HOOKNUM:
						c.hook = int32(be32Of(value))
					case unix.NFTA_HOOK_PRIORITY:
						c.priority = int32(be32Of(value))
					}
				}
			}
		}
		all = append(all, c)
	})
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	return all, nil
}

// readTable reads our table of the family, without its rules and elements.
func (k *Kernel) readTable(family string) (tableState, error) {
	t := tableState{sets: map[string]setState{}, counters: map[string]counted{}}
	number := familyNumber(family)
	err := k.nftDump(unix.NFT_MSG_GETTABLE, number, "", "", func(_ uint8, attrs []byte) {
		var name string
		var flags uint32
		for kind, value := range attributes(attrs) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				name = unix.ByteSliceToString(value)
			case unix.NFTA_TABLE_FLAGS:
				flags = be32Of(value)
			}
		}
		if name == backend.TableName {
			t.exists, t.flags = true, flags
		}
	})
	if err != nil || !t.exists {
		return t, err
	}
	chains, err := k.readChains()
	if err != nil {
		return t, err
	}
	t.chains = slices.DeleteFunc(chains, func(c chainState) bool { return c.family != number || c.table != backend.TableName })
	err = k.nftDump(unix.NFT_MSG_GETSET, number, backend.TableName, "", func(_ uint8, attrs []byte) {
		var s setState
		var name string
		for kind, value := range attributes(attrs) {
			switch kind {
			case unix.NFTA_SET_NAME:
				name = unix.ByteSliceToString(value)
			case unix.NFTA_SET_FLAGS:
				s.flags = be32Of(value)
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = be32Of(value)
			case unix.NFTA_SET_KEY_LEN:
				s.keyLength = be32Of(value)
			case unix.NFTA_SET_USERDATA:
				s.userData = bytes.Clone(value)
			}
		}
		if s.flags&unix.NFT_SET_ANONYMOUS == 0 { // one of a rule's own goes with the rule
			t.sets[name] = s
		}
	})
	if err != nil {
		return t, err
	}
	err = k.nftDump(unix.NFT_MSG_GETOBJ, number, backend.TableName, "", func(_ uint8, attrs []byte) {
		name, value := counterOf(attrs)
		t.counters[name] = value
	})
	return t, err
}

func counterOf(attrs []byte) (name string, c counted) {
	for kind, value := range attributes(attrs) {
		switch kind {
		case unix.NFTA_OBJ_NAME:
			name = unix.ByteSliceToString(value)
		case unix.NFTA_OBJ_DATA:
			for kind, value := range attributes(value) {
				switch {
				case len(value) < 8:
				case kind == unix.NFTA_COUNTER_PACKETS:
					c.packets = binary.BigEndian.Uint64(value)
				case kind == unix.NFTA_COUNTER_BYTES:
					c.bytes = binary.BigEndian.Uint64(value)
				}
			}
		}
	}
	return name, c
}

// readFilter adds our tables and their elements, and what others' chains do to us: to the rows that are there.
func (k *Kernel) readFilter(m machine, h *backend.Host, s backend.State) error {
	err := k.readTables(s)
	if err == nil {
		err = k.readForeign(m, h, s)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) { // no nf_tables: making the tables will say so
		err = nil
	}
	h.Dropped = make(map[string]uint64, len(k.counted))
	for name, c := range k.counted {
		h.Dropped[name] = c.packets
	}
	return err
}

func (k *Kernel) readTables(s backend.State) error {
	for _, family := range []string{backend.FamilyInet, backend.FamilyBridge} {
		t, err := k.readTable(family)
		if err != nil {
			return fmt.Errorf("read nft table %s %s: %w", family, backend.TableName, err)
		}
		if !t.exists {
			continue
		}
		for _, c := range countersOf(family) {
			if value, there := t.counters[c.name]; there {
				k.counted[c.name] = value
			}
		}
		row := backend.Table{Family: family}
		if row.Filter, row.Broken, err = k.judge(family, t); err != nil {
			return err
		}
		s.Add(row)
		if row.Filter != (backend.Filter{}) {
			k.filters[family] = row.Filter
		}
		for _, set := range setsOf(backend.Table{Family: family, Filter: k.filters[family]}) {
			if t.keeps(set) {
				if err := k.readElements(family, set, s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// judge says for what our table was made, and in what it differs from what that would make.
func (k *Kernel) judge(family string, t tableState) (backend.Filter, string, error) {
	settings, ok := t.comment(settingsChain)
	if !ok {
		return backend.Filter{}, "its chain " + settingsChain + " is missing", nil
	}
	inside, _ := t.comment(untrackedChain)
	f, err := backend.ParseFilter(settings, inside)
	if err != nil {
		return f, "its chain " + settingsChain + " says nothing", nil //nolint:nilerr // that is the finding
	}
	if t.dormant() {
		return f, "it is dormant", nil
	}
	want := backend.Table{Family: family, Filter: f}
	for _, s := range setsOf(want) {
		if !t.keeps(s) {
			return f, "set " + s.name + " is another", nil
		}
	}
	for _, c := range countersOf(family) {
		if _, ok := t.counters[c.name]; !ok {
			return f, "counter " + c.name + " is missing", nil
		}
	}
	chains := chainsOf(want)
	if len(t.sets) != len(setsOf(want)) || len(t.chains) != len(chains) {
		return f, fmt.Sprintf("it has %d chains and %d sets", len(t.chains), len(t.sets)), nil
	}
	for _, c := range chains {
		broken, err := k.judgeChain(family, c, t)
		if err != nil || broken != "" {
			return f, broken, err
		}
	}
	return f, "", nil
}

func (k *Kernel) judgeChain(family string, want nftChain, t tableState) (string, error) {
	i := slices.IndexFunc(t.chains, func(c chainState) bool { return c.name == want.name })
	if i < 0 {
		return "chain " + want.name + " is missing", nil
	}
	c := t.chains[i]
	if c.kind != want.kind || c.hook != want.hook || c.priority != want.priority || c.policy != nfAccept || c.comment != want.comment {
		return "chain " + want.name + " is another", nil
	}
	have, err := k.rulesOf(familyNumber(family), backend.TableName, want.name)
	if err != nil {
		return "", err
	}
	if len(have) != len(want.rules) {
		return fmt.Sprintf("chain %s has %d rules, not %d", want.name, len(have), len(want.rules)), nil
	}
	for i, r := range want.rules {
		if !sameRule(family, have[i], r) {
			return fmt.Sprintf("rule %d of chain %s is another", i+1, want.name), nil
		}
	}
	return "", nil
}

// rulesOf reads the rules of a chain.
func (k *Kernel) rulesOf(family uint8, table, chain string) ([]*nftables.Rule, error) {
	rules, err := k.rules.GetRules(&nftables.Table{Name: table, Family: nftables.TableFamily(family)}, &nftables.Chain{Name: chain})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list rules of %s %s: %w", table, chain, err)
	}
	return rules, nil
}

// sameRule compares rules as they would be written: what the kernel adds when it reads them back is left out.
func sameRule(family string, have *nftables.Rule, want nftRule) bool {
	if commentOf(have.UserData) != want.comment || len(have.Exprs) != len(want.exprs) {
		return false
	}
	for i, e := range have.Exprs {
		if l, ok := e.(*expr.Lookup); ok {
			l.SetID = 0
		}
		a, errA := encodeExpr(family, e)
		b, errB := encodeExpr(family, want.exprs[i])
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			return false
		}
	}
	return true
}
