package backend

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/overlayd/overlayd/subnet"
)

// Host is what [Plan] has to know of this machine: names the admin chose, and what the kernel says now.
type Host struct {
	Node   string // whose lease is ours
	VXLAN  string // name of the VXLAN device
	Bridge string // name of the bridge; empty: the admin brings their own

	Uplink    Uplink
	Connected []netip.Prefix // prefixes that the kernel reaches directly on any device that is not ours
	Gateways  []netip.Addr   // of default routes
	IPv6      bool           // the kernel has IPv6
	Pods      []Pod          // attached by the CNI plugin

	Guard      Guard
	Masquerade bool           // pods' packets to outside the network get the host's address
	Exclude    []netip.Prefix // except to these
	Untracked  bool           // connections inside the network are not tracked
	AntiSpoof  bool

	Drops     []Chain           // of iptables, which need rules of ours
	Obstacles []Obstacle        // chains of others that drop what is ours
	Dropped   map[string]uint64 // packets that our rules dropped, by reason
	PathMTU   []PathMTU         // that the kernel has learned
}

// PathMTU is what the kernel has learned of the way to an address, in bytes.
type PathMTU struct {
	To  netip.Addr
	MTU int
}

// Uplink is the device that carries the outer packets.
type Uplink struct {
	Name   string
	Addr   netip.Addr // source of outer packets; peers send to the lease's public address, which may be another (NAT)
	MTU    int        // bytes
	Down   bool
	OnLink []netip.Prefix // its connected prefixes
	Routed []netip.Prefix // parts of those to which a route leads through a gateway: not neighbours after all

	AcceptRA string // its IPv6 accept_ra: "" without IPv6
}

// Pod is one attachment: a link on the bridge that holds addresses by its alternative names.
type Pod struct {
	Link  string
	Addrs []netip.Addr
	Alias string // network/container/interface; empty while the ADD is under way

	MAC subnet.MAC // of the pod's end; zero when it cannot be seen
	MTU int        // of the pod's end in bytes; 0 when it cannot be seen
}

// container is the ID of the container that the link belongs to; empty while the ADD is under way.
func (p Pod) container() string {
	_, rest, _ := strings.Cut(p.Alias, "/")
	id, _, _ := strings.Cut(rest, "/")
	return id
}

// Bytes that VXLAN puts in front of a pod's IP packet (RFC 7348 section 5): outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8 and
// inner Ethernet 14.
const (
	overhead4 = 50
	overhead6 = 70
)

// Identifiers of nexthop objects begin here, one range for each family.
const (
	nexthopBase4 = 142_000_000
	nexthopBase6 = 1_420_000_000
)

// PodMTU is the MTU of the overlay's devices and of pods, in bytes.
func PodMTU(h Host, b subnet.Backend) int {
	mtu := h.Uplink.MTU
	if b.MTU != 0 {
		mtu = b.MTU
	}
	if b.Type != subnet.BackendVXLAN {
		return mtu
	}
	if h.Uplink.Addr.Is4() {
		return mtu - overhead4
	}
	return mtu - overhead6
}

// Plan returns what the kernel of host h should hold for the network s. Without a lease of h's node in s that is nothing:
// callers who do not mean to remove everything check first.
func Plan(h Host, s subnet.Snapshot) State {
	own, ok := s.Lease(h.Node)
	if !ok {
		return State{}
	}
	if s.Config.Backend.Type != subnet.BackendVXLAN {
		h.VXLAN, h.Guard = "", GuardOff
	}
	p := planner{host: h, config: s.Config, rows: make(State, 32+6*len(s.Leases))}
	p.filter(own, s)
	p.devices(own)
	p.sysctls()
	for _, l := range s.Leases {
		if l.Node != h.Node {
			p.peer(l)
		}
	}
	if s.Config.Backend.Type != subnet.BackendAlloc { // there a default route may be the admin's way to peers
		for _, pool := range s.Config.Pools() {
			p.rows.Add(Route{Dst: pool.Network, Metric: UnreachableMetric})
		}
	}
	return p.rows
}

type planner struct {
	host   Host
	config subnet.Config
	rows   State
}

func (p *planner) devices(own subnet.Lease) {
	b, h := p.config.Backend, p.host
	mtu := PodMTU(h, b)
	if h.VXLAN != "" {
		p.vxlan(own, mtu)
	}
	if h.Bridge == "" {
		return
	}
	p.rows.Add(Bridge{Name: h.Bridge, MAC: bridgeMAC(own), MTU: mtu, Up: true})
	for _, pod := range h.Pods {
		p.rows.Add(Port{Link: pod.Link, Bridge: h.Bridge})
	}
	for _, s := range own.Subnets() {
		p.rows.Add(Addr{Dev: h.Bridge, Prefix: netip.PrefixFrom(subnet.Gateway(s), s.Bits())})
	}
}

func (p *planner) vxlan(own subnet.Lease, mtu int) {
	b, h := p.config.Backend, p.host
	p.rows.Add(VXLAN{Name: h.VXLAN, VNI: b.VNI, Local: h.Uplink.Addr, Dev: h.Uplink.Name, Port: b.Port, MAC: own.MAC, MTU: mtu, Up: true})
	for _, s := range own.Subnets() {
		vtep := subnet.VTEP(s)
		p.rows.Add(Addr{Dev: h.VXLAN, Prefix: netip.PrefixFrom(vtep, vtep.BitLen())})
	}
}

func bridgeMAC(own subnet.Lease) subnet.MAC { return subnet.AddrMAC(subnet.Gateway(own.Subnets()[0])) }

// sysctls turns forwarding on, and keeps router advertisements from pods away from the host: one of them would become its
// default route.
func (p *planner) sysctls() {
	if p.config.IPv4.IsValid() {
		p.sysctls4()
	}
	if p.host.IPv6 {
		p.sysctls6(p.config.IPv6.IsValid())
	}
}

func (p *planner) sysctls4() {
	p.rows.Add(Sysctl{"net/ipv4/ip_forward", "1"})
	for _, dev := range []string{p.host.VXLAN, p.host.Bridge, p.host.Uplink.Name} {
		if dev != "" {
			p.rows.Add(Sysctl{"net/ipv4/conf/" + dev + "/forwarding", "1"}) // that of all devices does not undo one's own
		}
	}
	for _, dev := range []string{p.host.VXLAN, p.host.Bridge} {
		if dev != "" {
			p.rows.Add(Sysctl{"net/ipv4/conf/" + dev + "/accept_redirects", "0"})
		}
	}
	// A process of a peer may speak to pods from its public address, to which the way back is not this device: strict
	// reverse path filtering of all devices would drop that, the loose one (2) does not (ip-sysctl.rst, rp_filter).
	if p.host.VXLAN != "" {
		p.rows.Add(Sysctl{"net/ipv4/conf/" + p.host.VXLAN + "/rp_filter", "2"})
	}
}

func (p *planner) sysctls6(inner6 bool) {
	if inner6 {
		p.rows.Add(Sysctl{"net/ipv6/conf/all/forwarding", "1"})
		if up := p.host.Uplink; up.AcceptRA != "" && up.AcceptRA != "0" {
			p.rows.Add(Sysctl{"net/ipv6/conf/" + up.Name + "/accept_ra", "2"}) // a router takes advertisements only then
		}
	}
	for _, dev := range []string{p.host.VXLAN, p.host.Bridge} {
		knob := func(name, value string) {
			if dev != "" {
				p.rows.Add(Sysctl{"net/ipv6/conf/" + dev + "/" + name, value})
			}
		}
		if !inner6 {
			knob("disable_ipv6", "1")
			continue
		}
		knob("disable_ipv6", "0")
		knob("forwarding", "1")
		knob("accept_ra", "0")
		knob("accept_redirects", "0")
		// The bridge asks for pods by its link-local address. It gets that with the first pod, and detecting duplicates
		// would keep it from asking for two seconds.
		knob("accept_dad", "0")
	}
}

// peer adds the rows by which l's pods are reached.
func (p *planner) peer(l subnet.Lease) {
	var tunnelled bool
	for _, s := range l.Subnets() {
		switch p.way(s, l.PublicIP) {
		case wayDirect:
			p.rows.Add(Route{Dst: s, Metric: metric(s), Via: l.PublicIP, Dev: p.host.Uplink.Name})
		case wayTunnel:
			p.tunnel(s, l.MAC)
			tunnelled = true
		}
	}
	if tunnelled {
		p.rows.Add(FDB{Dev: p.host.VXLAN, MAC: l.MAC, Dst: l.PublicIP})
	}
}

// way is how packets get to a peer's subnet; the others are reasons why there is none.
type way string

const (
	wayDirect way = "by a plain route"
	wayTunnel way = "by VXLAN"
	wayNone   way = "the backend alloc makes no routes"
	wayCovers way = "it covers what this host reaches itself"
	wayFamily way = "its public address is of the other family than the uplink's"
	wayFar    way = "it is not on this host's link, and the backend host-gw reaches nobody else"
)

func (p *planner) way(s netip.Prefix, public netip.Addr) way {
	kind := p.config.Backend.Type
	switch {
	case kind == subnet.BackendAlloc:
		return wayNone
	case p.covers(s):
		return wayCovers
	case (kind == subnet.BackendHostGW || p.config.Backend.DirectRouting) && s.Addr().Is4() == public.Is4() && p.neighbour(public):
		return wayDirect
	case kind == subnet.BackendHostGW:
		return wayFar
	case public.Is4() != p.host.Uplink.Addr.Is4():
		return wayFamily
	}
	return wayTunnel
}

// Unreached names the peers' subnets to which there is no way, and says why.
func Unreached(h Host, s subnet.Snapshot) []string {
	p := planner{host: h, config: s.Config}
	var all []string
	for _, l := range s.Leases {
		for _, sub := range l.Subnets() {
			if w := p.way(sub, l.PublicIP); l.Node != h.Node && w != wayDirect && w != wayTunnel && w != wayNone {
				all = append(all, fmt.Sprintf("%s of %s at %s cannot be reached: %s", sub, l.Owner(), l.PublicIP, w))
			}
		}
	}
	return all
}

func (p *planner) tunnel(s netip.Prefix, mac subnet.MAC) {
	vtep, dev := subnet.VTEP(s), p.host.VXLAN
	r := Route{Dst: s, Metric: metric(s), Via: vtep, Dev: dev}
	if id, ok := nexthopID(p.config, s); ok {
		r.NHID = id
		p.rows.Add(Nexthop{ID: id, Via: vtep, Dev: dev})
	}
	p.rows.Add(Neigh{Dev: dev, IP: vtep, MAC: mac}, r)
}

// neighbour says whether the address is on our link, with no router in between.
func (p *planner) neighbour(public netip.Addr) bool {
	for _, routed := range p.host.Uplink.Routed {
		if routed.Contains(public) {
			return false
		}
	}
	for _, link := range p.host.Uplink.OnLink {
		if link.Contains(public) {
			return true
		}
	}
	return false
}

// covers is the last line of defence: whatever the store says, no route to a peer takes away what the host itself needs.
func (p *planner) covers(s netip.Prefix) bool {
	for _, c := range p.host.Connected {
		if s.Overlaps(c) {
			return true
		}
	}
	for _, g := range p.host.Gateways {
		if s.Contains(g) {
			return true
		}
	}
	return s.Contains(p.host.Uplink.Addr)
}

func metric(s netip.Prefix) uint32 {
	if s.Addr().Is4() {
		return 0
	}
	return ipv6Metric
}

// nexthopID returns the identifier of the nexthop object for s: computed, so that it needs no memory. A subnet of a
// former length has none and is routed without.
func nexthopID(c subnet.Config, s netip.Prefix) (uint32, bool) {
	if index, ok := c.IPv4.Index(s); ok {
		return nexthopBase4 + uint32(index), true
	}
	if index, ok := c.IPv6.Index(s); ok {
		return nexthopBase6 + uint32(index), true
	}
	return 0, false
}
