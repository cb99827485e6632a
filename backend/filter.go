package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/overlayd/overlayd/subnet"
)

// Guard says which VXLAN packets of our VNI a host accepts.
type Guard string

// The guards.
const (
	GuardFull Guard = "full" // as pairs of a lease's public address and an inner source of that lease
	GuardVTEP Guard = "vtep" // from public addresses of leases, whatever is inside
	GuardOff  Guard = "off"  // all
)

// DropReasons are the names of the counters of what our rules drop.
func DropReasons() []string {
	return []string{"stranger", "malformed", "not_unicast", "pod_vxlan", "spoofed", "router_advert"}
}

// Families of nft tables (nft(8)).
const (
	FamilyInet   = "inet"
	FamilyBridge = "bridge"
)

// TableName is the name of our nft tables, one of each family.
const TableName = "overlayd"

// Filter is all on which the rules of our nft tables depend. What there is one of for each peer, pod or network is not in
// the rules but in sets.
type Filter struct {
	Bridge     string // empty: the admin brings their own
	VNI        uint32
	Port       uint16
	Bits4      int  // length of the network's IPv4 subnets, 0 when it has none
	Bits6      int  // length of its IPv6 subnets, 0 when it has none
	Outer6     bool // outer packets are IPv6
	Guard      Guard
	Masquerade bool
	AntiSpoof  bool

	Untracked4 netip.Prefix // inside it the kernel does not track connections; zero: it does
	Untracked6 netip.Prefix
}

// filterForm is what the comment of our rules says of a filter but for what is not tracked; nft takes 128 bytes of it.
const filterForm = "bridge %s vni %d port %d subnets %d/%d outer %s guard %s masquerade %s antispoof %s"

// noBridge stands for no bridge: --bridge none makes that, so no bridge has the name.
const noBridge = "none"

// String returns the filter in one line.
func (f Filter) String() string {
	text, inside := f.Comments()
	if inside != "" {
		text += " untracked " + inside
	}
	return text
}

// Comments returns the filter as the two texts that [ParseFilter] reads. The second is empty when all connections are tracked.
func (f Filter) Comments() (settings, inside string) {
	bridge := f.Bridge
	if bridge == "" {
		bridge = noBridge
	}
	outer := "4"
	if f.Outer6 {
		outer = "6"
	}
	var prefixes []string
	for _, p := range f.Untracked() {
		prefixes = append(prefixes, p.String())
	}
	settings = fmt.Sprintf(filterForm, bridge, f.VNI, f.Port, f.Bits4, f.Bits6, outer, f.Guard, yesNo(f.Masquerade), yesNo(f.AntiSpoof))
	return settings, strings.Join(prefixes, " ")
}

// Untracked are the prefixes inside of which connections are not tracked.
func (f Filter) Untracked() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []netip.Prefix{f.Untracked4, f.Untracked6} {
		if p.IsValid() {
			all = append(all, p)
		}
	}
	return all
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

var errFilter = errors.New("not the comment of overlayd's rules")

// ParseFilter reads what [Filter.Comments] returned.
func ParseFilter(settings, inside string) (Filter, error) {
	var f Filter
	var outer, masquerade, antispoof string
	if _, err := fmt.Sscanf(settings, filterForm, &f.Bridge, &f.VNI, &f.Port, &f.Bits4, &f.Bits6, &outer, &f.Guard, &masquerade, &antispoof); err != nil {
		return Filter{}, errFilter
	}
	if f.Bridge == noBridge {
		f.Bridge = ""
	}
	f.Outer6 = outer == "6"
	f.Masquerade, f.AntiSpoof = masquerade == "yes", antispoof == "yes"
	for _, word := range strings.Fields(inside) {
		switch p, err := netip.ParsePrefix(word); {
		case err != nil:
			return Filter{}, errFilter
		case p.Addr().Is4():
			f.Untracked4 = p
		default:
			f.Untracked6 = p
		}
	}
	if a, b := f.Comments(); a != settings || b != inside {
		return Filter{}, errFilter
	}
	return f, nil
}

// Table is one of our nft tables with its chains and rules, which are replaced whole. What sets hold are rows of their own.
type Table struct {
	Family string
	Filter Filter
	Broken string // in what the kernel's differs from what the filter makes; "" when it does not
}

func (t Table) key() Entry { return Table{Family: t.Family} }
func (t Table) rank() int  { return rankTable }

func (t Table) String() string {
	text := fmt.Sprintf("table %s %s for %s", t.Family, TableName, t.Filter)
	if t.Broken != "" {
		text += ", but " + t.Broken
	}
	return text
}

// Names of sets of prefixes in the table of family inet, one of each address family.
const (
	SetPool    = "pool"    // the network
	SetOwn     = "own"     // this host's part of it
	SetExclude = "exclude" // destinations to which pods' packets are not masqueraded
	SetVTEPs   = "vteps"   // public addresses of peers, for [GuardVTEP]
	SetOuter   = "outer"   // this host's addresses to which peers send; single ones, a hash
)

// Member is a prefix in one of the sets named above.
type Member struct {
	Set    string
	Prefix netip.Prefix
}

// key makes another pool, and another part of it, an alteration: in between the old is there or the new, and no packet of a
// pod is taken for one that leaves the network.
func (m Member) key() Entry {
	if m.Set == SetPool || m.Set == SetOwn {
		return Member{Set: m.Set + digit(m.Prefix.Addr())}
	}
	return m
}

func (m Member) rank() int { return rankMember }

func (m Member) String() string {
	return fmt.Sprintf("element inet %s %s%s { %s }", TableName, m.Set, digit(m.Prefix.Addr()), m.Prefix)
}

func digit(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// Names of sets of pairs in the table of family inet, one of each address family. Looking a packet up in a hash costs less
// than half of what a set of intervals takes, and changing one of the latter takes the kernel a copy of all of it.
const (
	SetSubnets = "subnets" // subnets of the length that the network's have; a hash
	SetHosts   = "hosts"   // single addresses; a hash
	SetPeers   = "peers"   // the others; intervals
)

// Pair lets VXLAN packets in: from whom, with what source inside. An inner source has one outer source at any time.
type Pair struct {
	Set   string
	Inner netip.Prefix
	Outer netip.Addr
}

func (p Pair) key() Entry { return Pair{Inner: p.Inner} }
func (p Pair) rank() int  { return rankMember }

func (p Pair) String() string {
	return fmt.Sprintf("element inet %s %s%s { %s . %s }", TableName, p.Set, digit(p.Inner.Addr()), p.Outer, p.Inner)
}

// Subnets says whether the filter's table has a set of subnets of the network's usual length, which a rule can only look up
// when that is one of whole bytes.
func (f Filter) Subnets(six bool) bool { return f.bits(six) > 0 && f.bits(six)%8 == 0 }

func (f Filter) bits(six bool) int {
	if six {
		return f.Bits6
	}
	return f.Bits4
}

// pair makes a pair in the set where rules of this filter look for it.
func (f Filter) pair(inner netip.Prefix, outer netip.Addr) Pair {
	six := !inner.Addr().Is4()
	switch {
	case inner.IsSingleIP():
		return Pair{SetHosts, inner, outer}
	case f.Subnets(six) && inner.Bits() == f.bits(six):
		return Pair{SetSubnets, inner, outer}
	}
	return Pair{SetPeers, inner, outer}
}

// Stray is an element of one of our sets that is never wanted: only removed. Either it says something in which no plan is
// interested, or there is another one with its row's key, and one of them is wrong: a set can hold both.
type Stray struct {
	Row         Entry  // nil, or what it would be if it were the only one
	Family, Set string // without a row: where it is
	First, Last string // and its key's bytes; empty ones are those of the element that matches everything
}

func (s Stray) key() Entry { return s }
func (s Stray) rank() int  { return rankMember }

func (s Stray) String() string {
	switch {
	case s.Row != nil:
		return s.Row.String()
	case s.First == "":
		return fmt.Sprintf("element %s %s %s { * }", s.Family, TableName, s.Set)
	}
	return fmt.Sprintf("element %s %s %s { 0x%x-0x%x }", s.Family, TableName, s.Set, s.First, s.Last)
}

// Chain is one of somebody else's.
type Chain struct{ Family, Table, Name string }

func (c Chain) String() string { return fmt.Sprintf("%s %s %s", c.Family, c.Table, c.Name) }

// Accept is a rule of ours in somebody else's chain: an accept in our own table cannot keep another from dropping.
type Accept struct {
	Chain Chain
	In    bool // from the device, else to it
	Dev   string
}

func (a Accept) key() Entry { return a }
func (a Accept) rank() int  { return rankAccept }

func (a Accept) String() string {
	way := "oifname"
	if a.In {
		way = "iifname"
	}
	return fmt.Sprintf("rule %s %s %s accept comment overlayd", a.Chain, way, a.Dev)
}

// filter adds the tables and what their sets hold.
func (p *planner) filter(own subnet.Lease, s subnet.Snapshot) {
	h, b := p.host, p.config.Backend
	f := Filter{
		Bridge: h.Bridge, VNI: b.VNI, Port: b.Port, Bits4: usualBits(p.config.IPv4), Bits6: usualBits(p.config.IPv6),
		Outer6: !h.Uplink.Addr.Is4(), Guard: h.Guard, Masquerade: h.Masquerade, AntiSpoof: h.AntiSpoof && h.Bridge != "",
	}
	if h.VXLAN == "" { // nothing of VXLAN to be filtered
		f.VNI, f.Port = 0, 0
	}
	if f.Masquerade && h.Untracked { // without masquerade we make the kernel track nothing
		f.Untracked4, f.Untracked6 = p.config.IPv4.Network, p.config.IPv6.Network
	}
	p.rows.Add(Table{Family: FamilyInet, Filter: f})
	for _, pool := range p.config.Pools() {
		p.rows.Add(Member{SetPool, pool.Network})
	}
	for _, prefix := range own.Subnets() {
		p.rows.Add(Member{SetOwn, prefix})
	}
	if h.VXLAN != "" {
		for _, a := range []netip.Addr{h.Uplink.Addr, own.PublicIP} { // one, unless somebody translates between them
			if a.Is4() != f.Outer6 {
				p.rows.Add(Member{SetOuter, netip.PrefixFrom(a, a.BitLen())})
			}
		}
	}
	for _, prefix := range h.Exclude {
		p.rows.Add(Member{SetExclude, prefix})
	}
	for _, l := range s.Leases {
		if l.Node != h.Node {
			p.pairs(f, l)
		}
	}
	if f.AntiSpoof {
		frames := f
		frames.Untracked4, frames.Untracked6 = netip.Prefix{}, netip.Prefix{} // there are no connections yet
		p.rows.Add(Table{Family: FamilyBridge, Filter: frames})
		p.pods(own)
	}
	for _, c := range h.Drops {
		if h.Bridge != "" {
			p.rows.Add(Accept{Chain: c, In: true, Dev: h.Bridge}, Accept{Chain: c, Dev: h.Bridge})
		}
	}
}

// usualBits is the length of a pool's subnets, 0 without pool.
func usualBits(p subnet.Pool) int {
	if !p.IsValid() {
		return 0
	}
	return p.SubnetLen
}

// pairs lets a peer's packets in: those of its pods, and those that it sends itself with its public address inside. None has
// a source that the host reaches by itself.
func (p *planner) pairs(f Filter, l subnet.Lease) {
	if l.PublicIP.Is4() != p.host.Uplink.Addr.Is4() {
		return
	}
	public := netip.PrefixFrom(l.PublicIP, l.PublicIP.BitLen())
	switch p.host.Guard {
	case GuardOff:
	case GuardVTEP:
		p.rows.Add(Member{SetVTEPs, public})
	default:
		for _, s := range l.Subnets() {
			if !p.covers(s) {
				p.rows.Add(f.pair(s, l.PublicIP))
			}
		}
		if l.PublicIP.Is4() && p.config.IPv4.IsValid() || !l.PublicIP.Is4() && p.config.IPv6.IsValid() {
			p.rows.Add(f.pair(public, l.PublicIP))
		}
	}
}
