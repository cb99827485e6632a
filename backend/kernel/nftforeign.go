package kernel

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// Names that iptables-nft gives, and the chain that Docker leaves to admins, which it visits first.
const (
	iptablesTable   = "filter"
	iptablesForward = "FORWARD"
	dockerUser      = "DOCKER-USER"
)

// acceptComment marks our rules in others' chains.
const acceptComment = "overlayd"

func familyName(number uint8) string {
	switch number {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return backend.FamilyInet
	}
	return fmt.Sprint(number)
}

// readForeign looks for base chains of others that drop what they forward and do not accept, and for our rules in them.
func (k *Kernel) readForeign(h *backend.Host, s backend.State) error {
	chains, err := k.readChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		routed := c.family == unix.NFPROTO_IPV4 || c.family == unix.NFPROTO_IPV6 || c.family == unix.NFPROTO_INET
		if c.kind != "filter" || c.hook != unix.NF_INET_FORWARD || !routed || c.table == backend.TableName {
			continue
		}
		found := backend.Chain{Family: familyName(c.family), Table: c.table, Name: c.name}
		found.Iptables = c.table == iptablesTable && c.name == iptablesForward && c.family != unix.NFPROTO_INET
		if !found.Iptables && c.policy != nfDrop {
			continue
		}
		rules, err := k.rulesOf(c.family, c.table, c.name)
		if err != nil {
			return err
		}
		accepts(s, found, rules)
		if found.Iptables && slices.ContainsFunc(rules, visitsDocker) {
			found.Name = dockerUser
			if rules, err = k.rulesOf(c.family, c.table, dockerUser); err != nil {
				return err
			}
			accepts(s, found, rules)
		}
		if c.policy == nfDrop && (found.Iptables || !lets(rules, true, h.Bridge) || !lets(rules, false, h.Bridge)) {
			h.Drops = append(h.Drops, found)
		}
	}
	return nil
}

// accepts adds our rules among those of a chain.
func accepts(s backend.State, chain backend.Chain, rules []*nftables.Rule) {
	for _, r := range rules {
		if in, dev, ok := acceptOf(r); ok && commentOf(r.UserData) == acceptComment {
			s.Add(backend.Accept{Chain: chain, In: in, Dev: dev})
		}
	}
}

// lets says whether one of the rules accepts all from the device, or without in all to it.
func lets(rules []*nftables.Rule, in bool, dev string) bool {
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		way, name, ok := acceptOf(r)
		return ok && way == in && name == dev
	})
}

// visitsDocker says whether the rule sends all packets through Docker's chain for admins.
func visitsDocker(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictJump && e.Chain == dockerUser
		default:
			return false
		}
	}
	return false
}

// acceptOf reads a rule that accepts all that comes from a device or goes to one.
func acceptOf(r *nftables.Rule) (in bool, dev string, ok bool) {
	if len(r.Exprs) < 3 {
		return false, "", false
	}
	m, isMeta := r.Exprs[0].(*expr.Meta)
	c, isCmp := r.Exprs[1].(*expr.Cmp)
	v, isVerdict := r.Exprs[len(r.Exprs)-1].(*expr.Verdict)
	if !isMeta || !isCmp || !isVerdict || v.Kind != expr.VerdictAccept || c.Op != expr.CmpOpEq {
		return false, "", false
	}
	for _, e := range r.Exprs[2 : len(r.Exprs)-1] {
		if _, ok := e.(*expr.Counter); !ok {
			return false, "", false
		}
	}
	name := string(bytes.TrimRight(c.Data, "\x00"))
	return m.Key == expr.MetaKeyIIFNAME, name, m.Key == expr.MetaKeyIIFNAME || m.Key == expr.MetaKeyOIFNAME
}

// acceptRequests put our rule before the others of somebody's chain, or take it away.
func (k *Kernel) acceptRequests(a backend.Accept, add bool) ([]*nl.NetlinkRequest, error) {
	if add {
		key := expr.MetaKeyOIFNAME
		if a.In {
			key = expr.MetaKeyIIFNAME
		}
		rule := nftRule{comment: acceptComment, exprs: match(meta(key), equal(append([]byte(a.Dev), 0)...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})}
		req, err := ruleRequest(a.Chain.Family, a.Chain.Table, a.Chain.Name, rule, true)
		return []*nl.NetlinkRequest{req}, err
	}
	rules, err := k.rulesOf(familyNumber(a.Chain.Family), a.Chain.Table, a.Chain.Name)
	if err != nil {
		return nil, err
	}
	var reqs []*nl.NetlinkRequest
	for _, r := range rules {
		in, dev, ok := acceptOf(r)
		if !ok || in != a.In || dev != a.Dev || commentOf(r.UserData) != acceptComment {
			continue
		}
		req := nftRequest(unix.NFT_MSG_DELRULE, 0, a.Chain.Family, a.Chain.Table)
		req.AddData(text(unix.NFTA_RULE_CHAIN, a.Chain.Name))
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_HANDLE, be64(r.Handle)))
		reqs = append(reqs, req)
	}
	return reqs, nil
}
