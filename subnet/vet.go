package subnet

import (
	"fmt"
	"net/netip"
)

// vetter admits leases one after the other, oldest first.
type vetter struct {
	config  Config
	subnets prefixSet
	nodes   map[string]netip.Prefix
	ips     map[netip.Addr]string
	macs    map[MAC]string
}

func newVetter(c Config) *vetter {
	return &vetter{config: c, subnets: prefixSet{}, nodes: map[string]netip.Prefix{}, ips: map[netip.Addr]string{}, macs: map[MAC]string{}}
}

// admit returns why l cannot be used, or remembers it and returns "".
func (v *vetter) admit(l Lease) (Reason, string) {
	if reason, detail := v.wellFormed(l); reason != "" {
		return reason, detail
	}
	if reason, detail := v.clash(l); reason != "" {
		return reason, detail
	}
	for _, s := range l.Subnets() {
		v.subnets.add(s)
	}
	if l.Node != "" {
		v.nodes[l.Node] = l.Subnets()[0]
	}
	v.ips[l.PublicIP] = l.Owner()
	if v.config.Backend.Type == BackendVXLAN {
		v.macs[l.MAC] = l.Owner()
	}
	return "", ""
}

func (v *vetter) wellFormed(l Lease) (Reason, string) {
	if len(l.Subnets()) == 0 {
		return ReasonOutside, "no subnet"
	}
	for _, s := range l.Subnets() {
		if !v.config.pool(s).Contains(s) {
			return ReasonOutside, fmt.Sprintf("%s is outside the network %s", s, v.config.networks())
		}
		if f := familyOf(s); s.Bits() > f.maxLen || !v.config.holds(s) {
			return ReasonOutside, fmt.Sprintf("%s is not the size of a host's subnet", s)
		}
	}
	if v.config.Backend.Type == BackendVXLAN && !l.MAC.IsUnicast() {
		return ReasonMAC, fmt.Sprintf("MAC %s is not a unicast address", l.MAC)
	}
	if ip := l.PublicIP; !ip.IsGlobalUnicast() || ip.Is4In6() {
		return ReasonPublicIP, fmt.Sprintf("public address %s is not a unicast address", ip)
	}
	for _, p := range v.config.Pools() {
		if p.Network.Contains(l.PublicIP) {
			return ReasonPublicIP, fmt.Sprintf("public address %s is inside the network %s itself", l.PublicIP, p.Network)
		}
	}
	return "", ""
}

func (v *vetter) clash(l Lease) (Reason, string) {
	if older, ok := v.nodes[l.Node]; ok && l.Node != "" {
		return ReasonNode, fmt.Sprintf("node %s has the older lease %s", l.Node, older)
	}
	for _, s := range l.Subnets() {
		if older, ok := v.subnets.overlapping(s); ok {
			return ReasonOverlap, fmt.Sprintf("%s of %s overlaps the older lease %s", s, l.Owner(), older)
		}
	}
	if older, ok := v.ips[l.PublicIP]; ok {
		return ReasonPublicIP, fmt.Sprintf("public address %s is in the older lease of %s", l.PublicIP, older)
	}
	if older, ok := v.macs[l.MAC]; ok {
		return ReasonMAC, fmt.Sprintf("MAC %s is in the older lease of %s", l.MAC, older)
	}
	return "", ""
}

// pool returns the pool of s's family.
func (c Config) pool(s netip.Prefix) Pool {
	if s.Addr().Is4() {
		return c.IPv4
	}
	return c.IPv6
}

// holds says whether s can be a host's part of a pool. What covers a whole pool is nobody's: one such record must not keep
// everybody out.
func (c Config) holds(s netip.Prefix) bool {
	p := c.pool(s)
	return p.Contains(s) && s.Bits() > p.Network.Bits()
}

func (c Config) networks() string {
	var networks []netip.Prefix
	for _, p := range c.Pools() {
		networks = append(networks, p.Network)
	}
	return joinPrefixes(networks)
}

func familyOf(s netip.Prefix) family {
	if s.Addr().Is4() {
		return ipv4
	}
	return ipv6
}

// prefixSet holds disjoint prefixes by their length. Almost always there is one length, so that a look-up is one of a map.
type prefixSet map[int]map[netip.Prefix]bool

func (set prefixSet) add(p netip.Prefix) {
	if set[p.Bits()] == nil {
		set[p.Bits()] = map[netip.Prefix]bool{}
	}
	set[p.Bits()][p] = true
}

// overlapping returns a member that shares an address with p.
func (set prefixSet) overlapping(p netip.Prefix) (netip.Prefix, bool) {
	for length, members := range set {
		if length <= p.Bits() {
			if q := netip.PrefixFrom(p.Addr(), length).Masked(); members[q] {
				return q, true
			}
			continue
		}
		for q := range members {
			if p.Overlaps(q) {
				return q, true
			}
		}
	}
	return netip.Prefix{}, false
}
