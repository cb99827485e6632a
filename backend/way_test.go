package backend_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

const (
	hostGW     = `{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`
	hostGWBoth = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "host-gw"}}`
	alloc      = `{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}`
)

// TestWaysToAPeer: how a peer is reached, and if it is not, in what words that is said.
func TestWaysToAPeer(t *testing.T) {
	const plain = "10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd\n"
	const far = "10.5.35.0/24 of h8 at 198.51.100.8 cannot be reached: it is not on this host's link, and the backend host-gw reaches nobody else"
	const family = "10.5.35.0/24 of h8 at 2001:db8::8 cannot be reached: its public address is of the other family than the uplink's"
	same := func(*backend.Host) {}
	routed := func(text string) func(*backend.Host) {
		return func(h *backend.Host) { h.Uplink.Routed = []netip.Prefix{netip.MustParsePrefix(text)} }
	}
	covered := func(h *backend.Host) { h.Connected = append(h.Connected, netip.MustParsePrefix("10.5.35.0/25")) }
	h8, off := lease("h8", "192.0.2.8", "10.5.35.0/24"), lease("h8", "198.51.100.8", "10.5.35.0/24")
	for _, c := range []struct {
		claim     string
		host      func(*backend.Host)
		config    string
		peer      subnet.Lease
		want      string
		unreached string
	}{
		{"directly, with a router before others of the link", routed("192.0.2.128/25"), direct, h8, plain, ""},
		{"by VXLAN, when a router is in between after all", routed("192.0.2.8/32"), direct, h8, h8Tunnelled, ""},
		{"by VXLAN, when the whole link is behind a router", routed("192.0.2.0/24"), direct, h8, h8Tunnelled, ""},
		{"host-gw: directly on the link", same, hostGW, h8, plain, ""},
		{"host-gw: not off the link", same, hostGW, off, "", far},
		{"host-gw: not through a router on the link", routed("192.0.2.8/32"), hostGW, h8, "", strings.ReplaceAll(far, "198.51.100.8", "192.0.2.8")},
		{"host-gw: not the other family", same, hostGWBoth, lease("h8", "192.0.2.8", "10.5.35.0/24", "fd00:5:0:23::/64"), plain,
			"fd00:5:0:23::/64 of h8 at 192.0.2.8 cannot be reached: it is not on this host's link, and the backend host-gw reaches nobody else"},
		{"host-gw: not over what the host reaches itself", covered, hostGW, h8, "",
			"10.5.35.0/24 of h8 at 192.0.2.8 cannot be reached: it covers what this host reaches itself"},
		{"alloc: no routes, and no word about that", same, alloc, h8, "", ""},
		{"alloc: not even over what the host reaches itself", covered, alloc, h8, "", ""},
		{"a public address of the other family", same, four, lease("h8", "2001:db8::8", "10.5.35.0/24"), "", family},
		{"a public address of the other family, with direct routing", same, direct, lease("h8", "2001:db8::8", "10.5.35.0/24"), "", family},
		{"over a connected prefix", covered, four, h8, "", "10.5.35.0/24 of h8 at 192.0.2.8 cannot be reached: it covers what this host reaches itself"},
		{"a peer that runs flannel is named by its address", covered, four, subnet.Lease{Subnet: h8.Subnet, PublicIP: h8.PublicIP, MAC: h8.MAC}, "",
			"10.5.35.0/24 of 192.0.2.8 at 192.0.2.8 cannot be reached: it covers what this host reaches itself"},
		{"by VXLAN is reached", same, four, h8, h8Tunnelled, ""},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h := host()
			c.host(&h)
			s := subnet.Snapshot{Config: parse(t, c.config), Leases: []subnet.Lease{lease("h7", "192.0.2.7", "10.5.34.0/24"), c.peer}}
			checkText(t, toPeers(backend.Plan(h, s)), c.want)
			checkText(t, strings.Join(backend.Unreached(h, s), "\n"), c.unreached)
		})
	}
}

// The own lease is reached without a way: by what is connected.
func TestUnreachedNamesNoOwnSubnet(t *testing.T) {
	h, s := host(), three(t)
	h.Connected = append(h.Connected, netip.MustParsePrefix("10.5.34.0/24"))
	checkText(t, strings.Join(backend.Unreached(h, s), "\n"), "")
}

func TestPlanOfHostGWHasNoVXLAN(t *testing.T) {
	s := three(t)
	s.Config, s.Leases = parse(t, hostGW), s.Leases[:2]
	const filter = "bridge ovl0 vni 0 port 0 subnets 24/0 outer 4 guard off masquerade yes antispoof yes\n"
	checkText(t, backend.Plan(host(), s).String(), "table bridge overlayd for "+filter+"table inet overlayd for "+filter+`element inet overlayd own4 { 10.5.34.0/24 }
element inet overlayd pool4 { 10.5.0.0/16 }
ovl0: <UP> mtu 1500 lladdr 0a:58:0a:05:22:01 bridge
net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/ovl0/accept_redirects = 0
net/ipv4/conf/ovl0/forwarding = 1
net/ipv4/ip_forward = 1
net/ipv6/conf/ovl0/disable_ipv6 = 1
inet 10.5.34.1/24 dev ovl0
unreachable 10.5.0.0/16 proto overlayd metric 4294967295
10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd
`)
	s.Config = parse(t, alloc)
	if got := toPeers(backend.Plan(host(), s)); got != "" {
		t.Errorf("the backend alloc makes\n%s", got)
	}
}

func TestPodMTULeavesRoomForWhatTheBackendAdds(t *testing.T) {
	for _, c := range []struct {
		claim  string
		kind   string
		local  string
		uplink int
		config int
		want   int
	}{
		{"VXLAN over IPv4", subnet.BackendVXLAN, "192.0.2.7", 1500, 0, 1450},
		{"VXLAN over IPv6", subnet.BackendVXLAN, "2001:db8::7", 1500, 0, 1430},
		{"VXLAN configured, over IPv4", subnet.BackendVXLAN, "192.0.2.7", 1500, 9000, 8950},
		{"VXLAN configured, over IPv6", subnet.BackendVXLAN, "2001:db8::7", 9000, 1350, 1280},
		{"host-gw", subnet.BackendHostGW, "192.0.2.7", 1500, 0, 1500},
		{"host-gw over IPv6", subnet.BackendHostGW, "2001:db8::7", 9000, 0, 9000},
		{"host-gw configured", subnet.BackendHostGW, "192.0.2.7", 1500, 1400, 1400},
		{"alloc", subnet.BackendAlloc, "192.0.2.7", 1500, 0, 1500},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h := backend.Host{Uplink: backend.Uplink{Addr: netip.MustParseAddr(c.local), MTU: c.uplink}}
			if got := backend.PodMTU(h, subnet.Backend{Type: c.kind, MTU: c.config}); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
