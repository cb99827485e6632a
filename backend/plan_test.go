package backend_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// parse returns the configuration of a text that must be a good one.
func parse(t testing.TB, text string) subnet.Config {
	t.Helper()
	c, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

const (
	four   = `{"Network": "10.5.0.0/16"}`
	direct = `{"Network": "10.5.0.0/16", "Backend": {"DirectRouting": true}}`
	dual   = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`
	both   = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"DirectRouting": true}}`
)

// lease makes the lease of a node whose MAC ends in the node's last character.
func lease(node, public string, subnets ...string) subnet.Lease {
	last := node[len(node)-1]
	l := subnet.Lease{Node: node, PublicIP: netip.MustParseAddr(public), MAC: subnet.MAC{0x5e, 0x1f, 5: last - '0'}, Backend: "vxlan"}
	for _, text := range subnets {
		if s := netip.MustParsePrefix(text); s.Addr().Is4() {
			l.Subnet = s
		} else {
			l.Subnet6 = s
		}
	}
	return l
}

// host is h7, at 192.0.2.7.
func host() backend.Host {
	return backend.Host{
		Node: "h7", VXLAN: "overlay.1", Bridge: "ovl0", IPv6: true,
		Uplink: backend.Uplink{
			Name: "eth0", Addr: netip.MustParseAddr("192.0.2.7"), MTU: 1500,
			OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		},
		Connected: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("172.17.0.0/16")},
		Gateways:  []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Guard:     backend.GuardFull, Masquerade: true, AntiSpoof: true,
	}
}

// three hosts, as in DESIGN.md.
func three(t testing.TB) subnet.Snapshot {
	return subnet.Snapshot{Revision: 1, Config: parse(t, four), Leases: []subnet.Lease{
		lease("h7", "192.0.2.7", "10.5.34.0/24"), lease("h8", "192.0.2.8", "10.5.35.0/24"), lease("h9", "198.51.100.9", "10.5.200.0/24"),
	}}
}

// checkText compares what should be and what is, both in iproute2's words.
func checkText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPlanOfThreeHosts(t *testing.T) {
	checkText(t, backend.Plan(host(), three(t)).String(), `table bridge overlayd for bridge ovl0 vni 1 port 8472 subnets 24/0 outer 4 guard full masquerade yes antispoof yes
table inet overlayd for bridge ovl0 vni 1 port 8472 subnets 24/0 outer 4 guard full masquerade yes antispoof yes
element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }
element inet overlayd hosts4 { 198.51.100.9 . 198.51.100.9/32 }
element inet overlayd outer4 { 192.0.2.7/32 }
element inet overlayd own4 { 10.5.34.0/24 }
element inet overlayd pool4 { 10.5.0.0/16 }
element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }
element inet overlayd subnets4 { 198.51.100.9 . 10.5.200.0/24 }
overlay.1: <UP> mtu 1450 lladdr 5e:1f:00:00:00:07 vxlan id 1 local 192.0.2.7 dev eth0 dstport 8472 nolearning
ovl0: <UP> mtu 1450 lladdr 0a:58:0a:05:22:01 bridge
net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/overlay.1/accept_redirects = 0
net/ipv4/conf/overlay.1/forwarding = 1
net/ipv4/conf/overlay.1/rp_filter = 2
net/ipv4/conf/ovl0/accept_redirects = 0
net/ipv4/conf/ovl0/forwarding = 1
net/ipv4/ip_forward = 1
net/ipv6/conf/overlay.1/disable_ipv6 = 1
net/ipv6/conf/ovl0/disable_ipv6 = 1
inet 10.5.34.0/32 dev overlay.1
inet 10.5.34.1/24 dev ovl0
5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
5e:1f:00:00:00:09 dev overlay.1 dst 198.51.100.9 self permanent
10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
10.5.200.0 dev overlay.1 lladdr 5e:1f:00:00:00:09 PERMANENT
nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
nexthop id 142000200 via 10.5.200.0 dev overlay.1 onlink proto overlayd
unreachable 10.5.0.0/16 proto overlayd metric 4294967295
10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
10.5.200.0/24 nhid 142000200 via 10.5.200.0 dev overlay.1 onlink proto overlayd
`)
}

func TestPlanOfADualStackNetwork(t *testing.T) {
	s := subnet.Snapshot{Config: parse(t, dual), Leases: []subnet.Lease{
		lease("h7", "192.0.2.7", "10.5.34.0/24", "fd00:5:0:22::/64"),
		lease("h8", "192.0.2.8", "10.5.35.0/24", "fd00:5:0:23::/64"),
		lease("h9", "192.0.2.9", "10.5.36.0/24"), // it joined when the network had IPv4 alone
	}}
	checkText(t, backend.Plan(host(), s).String(), `table bridge overlayd for bridge ovl0 vni 1 port 8472 subnets 24/64 outer 4 guard full masquerade yes antispoof yes
table inet overlayd for bridge ovl0 vni 1 port 8472 subnets 24/64 outer 4 guard full masquerade yes antispoof yes
element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }
element inet overlayd hosts4 { 192.0.2.9 . 192.0.2.9/32 }
element inet overlayd outer4 { 192.0.2.7/32 }
element inet overlayd own4 { 10.5.34.0/24 }
element inet overlayd own6 { fd00:5:0:22::/64 }
element inet overlayd pool4 { 10.5.0.0/16 }
element inet overlayd pool6 { fd00:5::/48 }
element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }
element inet overlayd subnets4 { 192.0.2.9 . 10.5.36.0/24 }
element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }
overlay.1: <UP> mtu 1450 lladdr 5e:1f:00:00:00:07 vxlan id 1 local 192.0.2.7 dev eth0 dstport 8472 nolearning
ovl0: <UP> mtu 1450 lladdr 0a:58:0a:05:22:01 bridge
net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/overlay.1/accept_redirects = 0
net/ipv4/conf/overlay.1/forwarding = 1
net/ipv4/conf/overlay.1/rp_filter = 2
net/ipv4/conf/ovl0/accept_redirects = 0
net/ipv4/conf/ovl0/forwarding = 1
net/ipv4/ip_forward = 1
net/ipv6/conf/overlay.1/accept_dad = 0
net/ipv6/conf/overlay.1/accept_ra = 0
net/ipv6/conf/overlay.1/accept_redirects = 0
net/ipv6/conf/overlay.1/disable_ipv6 = 0
net/ipv6/conf/ovl0/accept_dad = 0
net/ipv6/conf/ovl0/accept_ra = 0
net/ipv6/conf/ovl0/accept_redirects = 0
net/ipv6/conf/ovl0/disable_ipv6 = 0
net/ipv6/conf/all/forwarding = 1
net/ipv6/conf/overlay.1/forwarding = 1
net/ipv6/conf/ovl0/forwarding = 1
inet 10.5.34.0/32 dev overlay.1
inet 10.5.34.1/24 dev ovl0
inet6 fd00:5:0:22::/128 dev overlay.1
inet6 fd00:5:0:22::1/64 dev ovl0
5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
5e:1f:00:00:00:09 dev overlay.1 dst 192.0.2.9 self permanent
10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
10.5.36.0 dev overlay.1 lladdr 5e:1f:00:00:00:09 PERMANENT
fd00:5:0:23:: dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
nexthop id 142000036 via 10.5.36.0 dev overlay.1 onlink proto overlayd
nexthop id 1420000035 via fd00:5:0:23:: dev overlay.1 onlink proto overlayd
unreachable 10.5.0.0/16 proto overlayd metric 4294967295
10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
10.5.36.0/24 nhid 142000036 via 10.5.36.0 dev overlay.1 onlink proto overlayd
unreachable fd00:5::/48 proto overlayd metric 4294967295
fd00:5:0:23::/64 nhid 1420000035 via fd00:5:0:23:: dev overlay.1 onlink proto overlayd metric 1024
`)
}

func TestPlanOverAnIPv6Underlay(t *testing.T) {
	h := host()
	h.Uplink.Addr, h.Uplink.OnLink = netip.MustParseAddr("2001:db8::7"), []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}
	s := subnet.Snapshot{Config: parse(t, four), Leases: []subnet.Lease{
		lease("h7", "2001:db8::7", "10.5.34.0/24"), lease("h8", "2001:db8::8", "10.5.35.0/24"),
	}}
	checkText(t, backend.Plan(h, s).String(), `table bridge overlayd for bridge ovl0 vni 1 port 8472 subnets 24/0 outer 6 guard full masquerade yes antispoof yes
table inet overlayd for bridge ovl0 vni 1 port 8472 subnets 24/0 outer 6 guard full masquerade yes antispoof yes
element inet overlayd outer6 { 2001:db8::7/128 }
element inet overlayd own4 { 10.5.34.0/24 }
element inet overlayd pool4 { 10.5.0.0/16 }
element inet overlayd subnets4 { 2001:db8::8 . 10.5.35.0/24 }
overlay.1: <UP> mtu 1430 lladdr 5e:1f:00:00:00:07 vxlan id 1 local 2001:db8::7 dev eth0 dstport 8472 nolearning
ovl0: <UP> mtu 1430 lladdr 0a:58:0a:05:22:01 bridge
net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/overlay.1/accept_redirects = 0
net/ipv4/conf/overlay.1/forwarding = 1
net/ipv4/conf/overlay.1/rp_filter = 2
net/ipv4/conf/ovl0/accept_redirects = 0
net/ipv4/conf/ovl0/forwarding = 1
net/ipv4/ip_forward = 1
net/ipv6/conf/overlay.1/disable_ipv6 = 1
net/ipv6/conf/ovl0/disable_ipv6 = 1
inet 10.5.34.0/32 dev overlay.1
inet 10.5.34.1/24 dev ovl0
5e:1f:00:00:00:08 dev overlay.1 dst 2001:db8::8 self permanent
10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
unreachable 10.5.0.0/16 proto overlayd metric 4294967295
10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
`)
}

func TestPlanWithoutABridgeOfOurs(t *testing.T) {
	h := host()
	h.Bridge = ""
	s := three(t)
	s.Leases, s.Config = s.Leases[:1], parse(t, `{"Network": "10.5.0.0/16", "Backend": {"VNI": 7, "Port": 4789, "MTU": 9000}}`)
	checkText(t, backend.Plan(h, s).String(), `table inet overlayd for bridge none vni 7 port 4789 subnets 24/0 outer 4 guard full masquerade yes antispoof no
element inet overlayd outer4 { 192.0.2.7/32 }
element inet overlayd own4 { 10.5.34.0/24 }
element inet overlayd pool4 { 10.5.0.0/16 }
overlay.1: <UP> mtu 8950 lladdr 5e:1f:00:00:00:07 vxlan id 7 local 192.0.2.7 dev eth0 dstport 4789 nolearning
net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/overlay.1/accept_redirects = 0
net/ipv4/conf/overlay.1/forwarding = 1
net/ipv4/conf/overlay.1/rp_filter = 2
net/ipv4/ip_forward = 1
net/ipv6/conf/overlay.1/disable_ipv6 = 1
inet 10.5.34.0/32 dev overlay.1
unreachable 10.5.0.0/16 proto overlayd metric 4294967295
`)
}

func TestPlanOfIPv6Alone(t *testing.T) {
	s := subnet.Snapshot{
		Config: parse(t, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`),
		Leases: []subnet.Lease{lease("h7", "192.0.2.7", "fd00:5:0:22::/64")},
	}
	h := host()
	h.Bridge = ""
	checkText(t, backend.Plan(h, s).String(), `table inet overlayd for bridge none vni 1 port 8472 subnets 0/64 outer 4 guard full masquerade yes antispoof no
element inet overlayd outer4 { 192.0.2.7/32 }
element inet overlayd own6 { fd00:5:0:22::/64 }
element inet overlayd pool6 { fd00:5::/48 }
overlay.1: <UP> mtu 1450 lladdr 5e:1f:00:00:00:07 vxlan id 1 local 192.0.2.7 dev eth0 dstport 8472 nolearning
net/ipv6/conf/overlay.1/accept_dad = 0
net/ipv6/conf/overlay.1/accept_ra = 0
net/ipv6/conf/overlay.1/accept_redirects = 0
net/ipv6/conf/overlay.1/disable_ipv6 = 0
net/ipv6/conf/all/forwarding = 1
net/ipv6/conf/overlay.1/forwarding = 1
inet6 fd00:5:0:22::/128 dev overlay.1
unreachable fd00:5::/48 proto overlayd metric 4294967295
`)
}

func TestPlanTouchesNoIPv6KnobWhereThereIsNoIPv6(t *testing.T) {
	h := host()
	h.IPv6 = false
	if got := backend.Plan(h, three(t)).String(); strings.Contains(got, "net/ipv6") || !strings.Contains(got, "net/ipv4/ip_forward = 1\n") {
		t.Errorf("got:\n%s\nwant net/ipv4/ip_forward and no net/ipv6", got)
	}
}

func TestPlanIsEmptyWithoutOwnLease(t *testing.T) {
	s := three(t)
	s.Leases = s.Leases[1:]
	checkText(t, backend.Plan(host(), s).String(), "")
	checkText(t, backend.Plan(host(), subnet.Snapshot{}).String(), "")
}
