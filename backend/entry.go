// Package backend says what a host's kernel should hold for the overlay, and keeps it so. It is pure: the kernel itself is
// behind the one interface [Kernel].
package backend

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/subnet"
)

// Entry is one row of the kernel's tables. Entries are comparable values; String is the row in the words of iproute2.
type Entry interface {
	fmt.Stringer
	key() Entry // what identifies the row: two entries with one key cannot both be in the kernel
	rank() int  // its place in the order of making: a row needs only rows of lower ranks
}

// Protocol is the number in the "proto" of our routes and nexthops: who made them (rtnetlink(7), rtm_protocol).
const Protocol = 142

// UnreachableMetric is the metric of the route that catches what no lease covers: the last one to be looked at.
const UnreachableMetric = 1<<32 - 1

// ipv6Metric is what Linux gives an IPv6 route without metric (IP6_RT_PRIO_USER).
const ipv6Metric = 1024

const (
	rankTable = iota
	rankMember
	rankPodPort
	rankVXLAN
	rankBridge
	rankHalf
	rankSysctl
	rankForwarding
	rankPort // after the bridge's knobs: a port gives it a link-local address, for which it must not wait two seconds
	rankAddr
	rankFDB
	rankNeigh
	rankNexthop
	rankRoute
	rankAccept
)

// kinds are the names of the ranks.
var kinds = [...]string{"table", "member", "member", "vxlan", "bridge", "half", "sysctl", "sysctl", "port", "addr", "fdb", "neigh", "nexthop", "route", "accept"}

// Kinds are all that [Kind] returns.
func Kinds() []string { return slices.Compact(slices.Clone(kinds[:])) }

// Kind names what the row is, in one word fit for a metric's label.
func Kind(e Entry) string { return kinds[e.rank()] }

// VXLAN is the VTEP's device.
type VXLAN struct {
	Name     string
	VNI      uint32
	Local    netip.Addr // source address of the outer packets
	Dev      string     // the uplink
	Port     uint16
	MAC      subnet.MAC
	MTU      int
	Learning bool // sources of received packets enter the FDB: never wanted
	Up       bool
}

func (v VXLAN) key() Entry { return VXLAN{Name: v.Name} }
func (v VXLAN) rank() int  { return rankVXLAN }

func (v VXLAN) String() string {
	learning := "nolearning"
	if v.Learning {
		learning = "learning"
	}
	return fmt.Sprintf("%s: <%s> mtu %d lladdr %s vxlan id %d local %s dev %s dstport %d %s",
		v.Name, upDown(v.Up), v.MTU, v.MAC, v.VNI, v.Local, v.Dev, v.Port, learning)
}

// Bridge connects the pods of this host.
type Bridge struct {
	Name string
	MAC  subnet.MAC
	MTU  int
	Up   bool
}

func (b Bridge) key() Entry { return Bridge{Name: b.Name} }
func (b Bridge) rank() int  { return rankBridge }

func (b Bridge) String() string {
	return fmt.Sprintf("%s: <%s> mtu %d lladdr %s bridge", b.Name, upDown(b.Up), b.MTU, b.MAC)
}

func upDown(up bool) string {
	if up {
		return "UP"
	}
	return "DOWN"
}

// Sysctl is a knob of the kernel, written with slashes because device names hold dots: net/ipv4/ip_forward.
type Sysctl struct{ Name, Value string }

func (s Sysctl) key() Entry     { return Sysctl{Name: s.Name} }
func (s Sysctl) String() string { return s.Name + " = " + s.Value }

// rank puts the forwarding of IPv6 last: with it the kernel drops default routes learned by devices that are not told
// before to take router advertisements nevertheless (rt6_purge_dflt_routers).
func (s Sysctl) rank() int {
	if strings.HasPrefix(s.Name, "net/ipv6/") && strings.HasSuffix(s.Name, "/forwarding") {
		return rankForwarding
	}
	return rankSysctl
}

// Addr is an address on one of our devices.
type Addr struct {
	Dev    string
	Prefix netip.Prefix // the address with its host bits
}

func (a Addr) key() Entry { return a }
func (a Addr) rank() int  { return rankAddr }

func (a Addr) String() string {
	family := "inet"
	if !a.Prefix.Addr().Is4() {
		family = "inet6"
	}
	return fmt.Sprintf("%s %s dev %s", family, a.Prefix, a.Dev)
}

// Port is a pod's link as a port of the bridge. The CNI plugin makes it; a bridge that was made anew has lost it.
type Port struct{ Link, Bridge string }

func (p Port) key() Entry     { return Port{Link: p.Link} }
func (p Port) rank() int      { return rankPort }
func (p Port) String() string { return fmt.Sprintf("%s master %s hairpin on", p.Link, p.Bridge) }

// Half is the host's link of an attachment that the CNI plugin began some time ago and did not end: it was killed, and
// nobody called it again. None is ever wanted.
type Half struct{ Link string }

func (h Half) key() Entry     { return h }
func (h Half) rank() int      { return rankHalf }
func (h Half) String() string { return h.Link + " of an attachment that did not end" }

// FDB says to which host frames for a MAC go.
type FDB struct {
	Dev string
	MAC subnet.MAC
	Dst netip.Addr
}

func (f FDB) key() Entry { return FDB{Dev: f.Dev, MAC: f.MAC} }
func (f FDB) rank() int  { return rankFDB }
func (f FDB) String() string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Dev, f.Dst)
}

// Neigh is a permanent neighbour (ARP or ND) entry: a peer's VTEP address and MAC.
type Neigh struct {
	Dev string
	IP  netip.Addr
	MAC subnet.MAC
}

func (n Neigh) key() Entry { return Neigh{Dev: n.Dev, IP: n.IP} }
func (n Neigh) rank() int  { return rankNeigh }
func (n Neigh) String() string {
	return fmt.Sprintf("%s dev %s lladdr %s PERMANENT", n.IP, n.Dev, n.MAC)
}

// Nexthop is a nexthop object of ours. Routes that share none and are many cost the kernel the square of their number;
// with an object each they do not (net/ipv4/fib_semantics.c hashes plain gateways of one device into one chain).
type Nexthop struct {
	ID  uint32
	Via netip.Addr
	Dev string
}

func (n Nexthop) key() Entry { return Nexthop{ID: n.ID} }
func (n Nexthop) rank() int  { return rankNexthop }

func (n Nexthop) String() string {
	return fmt.Sprintf("nexthop id %d via %s dev %s onlink proto overlayd", n.ID, n.Via, n.Dev)
}

// Route is a route of ours in the main table: by nexthop object (NHID with the object's Via and Dev), by a gateway on the
// link (Via and Dev), or without Via one that answers "unreachable".
type Route struct {
	Dst    netip.Prefix
	Metric uint32
	NHID   uint32
	Via    netip.Addr
	Dev    string
}

func (r Route) key() Entry { return Route{Dst: r.Dst, Metric: r.Metric} }
func (r Route) rank() int  { return rankRoute }

func (r Route) String() string {
	if !r.Via.IsValid() {
		return fmt.Sprintf("unreachable %s proto overlayd metric %d", r.Dst, r.Metric)
	}
	nhid, metric := "", ""
	if r.NHID != 0 {
		nhid = fmt.Sprintf(" nhid %d", r.NHID)
	}
	if r.Metric != 0 {
		metric = fmt.Sprintf(" metric %d", r.Metric)
	}
	return fmt.Sprintf("%s%s via %s dev %s onlink proto overlayd%s", r.Dst, nhid, r.Via, r.Dev, metric)
}
