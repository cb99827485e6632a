package backend

import (
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/subnet"
)

// Sets of the table of family bridge that hold pods' addresses.
const (
	SetPods    = "pods"    // sources
	SetTargets = "targets" // what neighbour advertisements may be about (RFC 4861 section 4.4)
)

// PodAddr says that a pod's link may use an address with a MAC.
type PodAddr struct {
	Set  string
	Link string
	Addr netip.Addr
	MAC  subnet.MAC
}

func (p PodAddr) key() Entry { return PodAddr{Set: p.Set, Link: p.Link, Addr: p.Addr} }
func (p PodAddr) rank() int  { return rankMember }

func (p PodAddr) String() string {
	return fmt.Sprintf("element bridge %s %s%s { %s . %s . %s }", TableName, p.Set, digit(p.Addr), p.Link, p.MAC, p.Addr)
}

// PodMAC says that a pod's link may use a MAC.
type PodMAC struct {
	Link string
	MAC  subnet.MAC
}

func (p PodMAC) key() Entry { return PodMAC{Link: p.Link} }
func (p PodMAC) rank() int  { return rankMember }
func (p PodMAC) String() string {
	return fmt.Sprintf("element bridge %s macs { %s . %s }", TableName, p.Link, p.MAC)
}

// PodPort says that a pod's link may use nothing but what the other sets say. It is made after those.
type PodPort struct{ Link string }

func (p PodPort) key() Entry { return p }
func (p PodPort) rank() int  { return rankPodPort }
func (p PodPort) String() string {
	return fmt.Sprintf("element bridge %s ports { %s }", TableName, p.Link)
}

// pods lets each pod send with what it has. A MAC that it has taken from the bridge, or from another that has it or was
// given it, is not its own.
func (p *planner) pods(own subnet.Lease) {
	taken := map[subnet.MAC]int{bridgeMAC(own): 1}
	for _, pod := range p.host.Pods {
		given := subnet.AddrMAC(pod.Addrs[0])
		if taken[given]++; pod.MAC != given {
			taken[pod.MAC]++
		}
	}
	addrs := byContainer(p.host.Pods)
	for _, pod := range p.host.Pods {
		mac := pod.MAC
		if mac == (subnet.MAC{}) || taken[mac] > 1 {
			mac = subnet.AddrMAC(pod.Addrs[0])
		}
		p.rows.Add(PodPort{pod.Link}, PodMAC{pod.Link, mac})
		for _, a := range append(pod.Addrs[:len(pod.Addrs):len(pod.Addrs)], addrs[pod.container()]...) {
			p.rows.Add(PodAddr{Set: SetPods, Link: pod.Link, Addr: a, MAC: mac})
			if !a.Is4() {
				p.rows.Add(PodAddr{Set: SetTargets, Link: pod.Link, Addr: a, MAC: mac})
			}
		}
	}
}

// byContainer returns the addresses of each container that has several links. It answers for all of them on any, and sends
// from any: Linux gives addresses to the host, not to the link (arp_ignore in the kernel's ip-sysctl).
func byContainer(pods []Pod) map[string][]netip.Addr {
	all := map[string][]netip.Addr{}
	for _, pod := range pods {
		if c := pod.container(); c != "" {
			all[c] = append(all[c], pod.Addrs...)
		}
	}
	return all
}
