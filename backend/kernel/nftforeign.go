package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

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

// surroundings are what others' chains do to us.
type surroundings struct {
	accepts   []backend.Accept // rules of ours in them
	drops     []backend.Chain  // that need such rules
	obstacles []backend.Obstacle
}

// readForeign adds what others' chains do to us. While somebody changes them that cannot be said: then it is what was said
// before. Which rules of ours are there is what was read last.
func (k *Kernel) readForeign(m machine, h *backend.Host, s backend.State) error {
	probes := probesOf(m, *h, s)
	var now surroundings
	var err error
	for range retries {
		var settled bool
		if now, settled, err = k.lookOnce(probes); settled {
			k.around = now
		}
		if settled || err != nil && !errors.Is(err, errInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("look at others' nft chains: %w", err)
	}
	for _, a := range now.accepts {
		s.Add(a)
	}
	h.Obstacles = k.around.obstacles
	if h.Bridge != "" {
		h.Drops = k.around.drops
	}
	return nil
}

// lookOnce looks around, and says whether nobody changed anything meanwhile.
func (k *Kernel) lookOnce(probes []probe) (now surroundings, settled bool, err error) {
	before, err := k.generation()
	if err != nil {
		return now, false, err
	}
	if now, err = k.lookAround(probes); err != nil {
		return now, false, err
	}
	after, err := k.generation()
	return now, err == nil && before == after, err
}

// lookAround follows the probes through all base chains of others.
func (k *Kernel) lookAround(probes []probe) (surroundings, error) {
	var now surroundings
	chains, err := k.readChains()
	if err != nil {
		return now, err
	}
	asleep, err := k.dormant()
	if err != nil {
		return now, fmt.Errorf("list nft tables: %w", err)
	}
	read := k.newReading()
	for _, c := range chains {
		routed := c.family == unix.NFPROTO_IPV4 || c.family == unix.NFPROTO_IPV6 || c.family == unix.NFPROTO_INET
		filters := c.kind == "filter" || c.kind == "route" // the latter is iptables' table mangle at output
		if !filters || !routed || c.table == backend.TableName || asleep[place{family: c.family, table: c.table}] {
			continue
		}
		if c.hook == unix.NF_INET_FORWARD && c.table == iptablesTable && c.name == iptablesForward && c.family != unix.NFPROTO_INET {
			read.iptables(c, probes, &now)
		}
		for _, p := range probes {
			if int32(p.hook) != c.hook || !c.sees(p.packet) || !read.drops(c, p, nil) {
				continue
			}
			o := backend.Obstacle{
				Chain: backend.Chain{Family: familyName(c.family), Table: c.table, Name: c.name}, Hook: p.name, Tool: toolOf(c, chains), Peer: p.peer,
			}
			same := func(other backend.Obstacle) bool { return other.Chain == o.Chain && other.Hook == o.Hook }
			if !slices.ContainsFunc(now.obstacles, same) {
				now.obstacles = append(now.obstacles, o)
			}
		}
	}
	return now, nil
}

// iptables looks at iptables' chain for forwarded packets: where our rules are in it, and whether it needs them. It does when
// it drops whatever nothing has accepted; a rule that drops something in particular is somebody's will, and only named. A
// chain with a rule that cannot be read is left as it is.
func (r *reading) iptables(c chainState, probes []probe, now *surroundings) {
	found := backend.Chain{Family: familyName(c.family), Table: c.table, Name: c.name}
	rules, err := r.rulesOf(place{c.family, c.table, c.name})
	if err != nil {
		return
	}
	needs := c.policy == nfDrop
	if slices.ContainsFunc(rules, dropsAll) {
		needs = needs || slices.ContainsFunc(probes, func(p probe) bool {
			return p.hook == unix.NF_INET_FORWARD && c.sees(p.packet) && r.drops(c, p, isOurs)
		})
	}
	now.addAccepts(found, rules)
	if slices.ContainsFunc(rules, visitsDocker) {
		found.Name = dockerUser
		if rules, err = r.rulesOf(place{c.family, c.table, dockerUser}); err != nil {
			return
		}
		now.addAccepts(found, rules)
	}
	if needs {
		now.drops = append(now.drops, found)
	}
}

// isOurs says whether we made the rule in somebody's chain.
func isOurs(r *nftables.Rule) bool { return commentOf(r.UserData) == acceptComment }

// dropsAll says whether the rule drops, or rejects, whatever comes to it.
func dropsAll(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return true
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop
		case *expr.Match:
			if e.Name != "comment" {
				return false
			}
		case *expr.Target:
			return e.Name == "REJECT"
		default:
			return false
		}
	}
	return false
}

// drops says whether the chain drops the probe for certain, with some rules looked over.
func (r *reading) drops(c chainState, p probe, past func(*nftables.Rule) bool) bool {
	w := walk{reading: r, family: c.family, table: c.table, packet: p.packet, past: past, fates: map[string]fate{}}
	return w.base(c)
}

// sees says whether packets of that family come to the chain.
func (c chainState) sees(p packet) bool {
	return c.family == unix.NFPROTO_INET || c.family == p.family()
}

// toolOf says who made the chain.
func toolOf(c chainState, all []chainState) string {
	switch {
	case c.table == "firewalld":
		return "firewalld"
	case c.table != iptablesTable || c.family == unix.NFPROTO_INET || c.name != strings.ToUpper(c.name): // FORWARD, INPUT, OUTPUT
		return ""
	case slices.ContainsFunc(all, func(other chainState) bool { return other.family == c.family && strings.HasPrefix(other.name, "ufw") }):
		return "ufw"
	}
	return "iptables"
}

// probe is a packet of the overlay that others' chains at a hook are asked about.
type probe struct {
	packet
	hook uint32
	name backend.Hook
	peer netip.Addr
}

// probesOf makes those that this host sees now: between a pod here and one behind each kind of way, and VXLAN of a peer. What
// pods speak is taken as TCP to a port that nobody lets through by its number.
func probesOf(m machine, h backend.Host, s backend.State) []probe {
	devices := map[string]device{}
	for index, name := range m.names {
		devices[name] = device{name, uint32(index)}
	}
	var vxlan backend.VXLAN
	var table backend.Table
	type way struct { // its kind: one probe there and back is enough
		dev string
		six bool
	}
	pods, remote, vteps := map[bool]netip.Addr{}, map[way]backend.Route{}, []netip.Addr{}
	for _, e := range s {
		switch e := e.(type) {
		case backend.VXLAN:
			vxlan = e
		case backend.Table:
			if e.Family == backend.FamilyInet {
				table = e
			}
		case backend.FDB:
			vteps = append(vteps, e.Dst)
		case backend.Addr:
			if e.Dev == h.Bridge {
				pods[e.Prefix.Addr().Is6()] = e.Prefix.Addr().Next()
			}
		case backend.Route:
			w := way{e.Dev, e.Dst.Addr().Is6()}
			if other, ok := remote[w]; e.Via.IsValid() && (!ok || e.Dst.Addr().Less(other.Dst.Addr())) {
				remote[w] = e
			}
		}
	}
	var all []probe
	bridge := devices[h.Bridge]
	order := func(a, b way) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	for _, w := range slices.SortedFunc(maps.Keys(remote), order) {
		r := remote[w]
		here, there, dev := pods[w.six], r.Dst.Addr().Next().Next(), devices[w.dev]
		if bridge.index == 0 || !here.IsValid() {
			continue
		}
		forth := packet{in: bridge, out: dev, src: here, dst: there, protocol: unix.IPPROTO_TCP, port: 1, anyPort: true, state: stateNew}
		if pool := map[bool]netip.Prefix{false: table.Filter.Untracked4, true: table.Filter.Untracked6}[w.six]; pool.IsValid() {
			forth.state = stateUntracked
		}
		back := forth
		back.in, back.out, back.src, back.dst = dev, bridge, there, here
		all = append(all, probe{forth, unix.NF_INET_FORWARD, backend.HookForward, there}, probe{back, unix.NF_INET_FORWARD, backend.HookForward, there})
	}
	if len(vteps) > 0 && vxlan.Local.IsValid() {
		vtep, dev := slices.MinFunc(vteps, netip.Addr.Compare), devices[vxlan.Dev]
		in := packet{in: dev, src: vtep, dst: vxlan.Local, protocol: unix.IPPROTO_UDP, port: vxlan.Port, state: stateUntracked, local: true}
		out := packet{out: dev, src: vxlan.Local, dst: vtep, protocol: unix.IPPROTO_UDP, port: vxlan.Port, state: stateUntracked}
		all = append(all, probe{in, unix.NF_INET_LOCAL_IN, backend.HookInput, vtep}, probe{out, unix.NF_INET_LOCAL_OUT, backend.HookOutput, vtep})
	}
	return all
}

// addAccepts adds our rules among those of a chain.
func (a *surroundings) addAccepts(chain backend.Chain, rules []*nftables.Rule) {
	for _, r := range rules {
		if in, dev, ok := acceptOf(r); ok && isOurs(r) {
			a.accepts = append(a.accepts, backend.Accept{Chain: chain, In: in, Dev: dev})
		}
	}
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
