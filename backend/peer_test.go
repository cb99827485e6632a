package backend_test

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// toPeers returns the rows of a plan that lead to others.
func toPeers(s backend.State) string {
	rows := backend.State{}
	for _, e := range s {
		switch e := e.(type) {
		case backend.FDB, backend.Neigh, backend.Nexthop:
			rows.Add(e)
		case backend.Route:
			if e.Via.IsValid() {
				rows.Add(e)
			}
		}
	}
	return rows.String()
}

// h8Tunnelled are the rows by which h8 is reached when nothing is special about it.
const h8Tunnelled = `5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd
`

func TestPlanOfAPeer(t *testing.T) {
	same := func(*backend.Host) {}
	connected := func(text string) func(*backend.Host) {
		return func(h *backend.Host) { h.Connected = append(h.Connected, netip.MustParsePrefix(text)) }
	}
	gateway := func(text string) func(*backend.Host) {
		return func(h *backend.Host) { h.Gateways = append(h.Gateways, netip.MustParseAddr(text)) }
	}
	h8 := lease("h8", "192.0.2.8", "10.5.35.0/24")
	h8Dual := lease("h8", "192.0.2.8", "10.5.35.0/24", "fd00:5:0:23::/64")
	for _, c := range []struct {
		claim  string
		host   func(*backend.Host)
		config string
		peers  []subnet.Lease
		want   string
	}{
		{"by tunnel", same, four, []subnet.Lease{h8}, h8Tunnelled},
		{"by tunnel with direct routing off, though on our link", same, four, []subnet.Lease{h8}, h8Tunnelled},
		{"by a plain route on our link, by tunnel off it", same, direct, []subnet.Lease{h8, lease("h9", "198.51.100.9", "10.5.36.0/24")},
			`5e:1f:00:00:00:09 dev overlay.1 dst 198.51.100.9 self permanent
10.5.36.0 dev overlay.1 lladdr 5e:1f:00:00:00:09 PERMANENT
nexthop id 142000036 via 10.5.36.0 dev overlay.1 onlink proto overlayd
10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd
10.5.36.0/24 nhid 142000036 via 10.5.36.0 dev overlay.1 onlink proto overlayd
`},
		{"directly for the family of the link only", same, both, []subnet.Lease{h8Dual},
			`5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
fd00:5:0:23:: dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
nexthop id 1420000035 via fd00:5:0:23:: dev overlay.1 onlink proto overlayd
10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd
fd00:5:0:23::/64 nhid 1420000035 via fd00:5:0:23:: dev overlay.1 onlink proto overlayd metric 1024
`},
		{"of a former length: no number, hence no nexthop object", same, four, []subnet.Lease{lease("h8", "192.0.2.8", "10.5.64.0/23")},
			`5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent
10.5.64.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT
10.5.64.0/23 via 10.5.64.0 dev overlay.1 onlink proto overlayd
`},
		{"that runs flannel", same, four, []subnet.Lease{{Subnet: h8.Subnet, PublicIP: h8.PublicIP, MAC: h8.MAC}}, h8Tunnelled},
		{"with a public address of the other family: no way there", same, four, []subnet.Lease{lease("h8", "2001:db8::8", "10.5.35.0/24")}, ""},

		{"beside a connected prefix", connected("10.5.36.0/24"), four, []subnet.Lease{h8}, h8Tunnelled},
		{"over a connected prefix", connected("10.5.35.128/25"), four, []subnet.Lease{h8}, ""},
		{"equal to a connected prefix", connected("10.5.35.0/24"), four, []subnet.Lease{h8}, ""},
		{"inside a connected prefix", connected("10.5.0.0/17"), four, []subnet.Lease{h8}, ""},
		{"over a connected prefix, directly", connected("10.5.35.128/25"), direct, []subnet.Lease{h8}, ""},
		{"over a default gateway", gateway("10.5.35.254"), four, []subnet.Lease{h8}, ""},
		{"over our own address", func(h *backend.Host) { h.Uplink.Addr = netip.MustParseAddr("10.5.35.7") }, four, []subnet.Lease{h8}, ""},
		{"over a connected prefix in one family", connected("fd00:5:0:23::/64"), dual, []subnet.Lease{h8Dual}, h8Tunnelled},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h := host()
			c.host(&h)
			own := lease("h7", "192.0.2.7", "10.5.34.0/24")
			got := toPeers(backend.Plan(h, subnet.Snapshot{Config: parse(t, c.config), Leases: append([]subnet.Lease{own}, c.peers...)}))
			checkText(t, got, c.want)
		})
	}
}

// The unreachable route and the own rows stay whatever peers do: a fault of a peer is not to open the default route.
func TestPlanKeepsOwnRowsWhenAPeerIsNotRouted(t *testing.T) {
	h := host()
	h.Connected = append(h.Connected, netip.MustParsePrefix("10.5.35.0/24"))
	with, alone := three(t), three(t)
	with.Leases, alone.Leases = with.Leases[:2], alone.Leases[:1]
	own := backend.Plan(h, with)
	for key, row := range own {
		if _, pair := row.(backend.Pair); pair {
			checkText(t, row.String(), "element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }") // and no source that is the host's own
			delete(own, key)
		}
	}
	checkText(t, own.String(), backend.Plan(h, alone).String())
}

func TestPlanDoesNotDependOnTheOrderOfLeases(t *testing.T) {
	s := three(t)
	want := backend.Plan(host(), s).String()
	s.Leases = []subnet.Lease{s.Leases[2], s.Leases[0], s.Leases[1]}
	checkText(t, backend.Plan(host(), s).String(), want)
}

// What ip(8) shows for each kind of row, as DESIGN.md has it under "What it looks like".
func TestRowsReadAsIproute2WritesThem(t *testing.T) {
	vtep, mac := netip.MustParseAddr("10.5.35.0"), subnet.MAC{0x5e, 0x1f, 5: 8}
	six := netip.MustParsePrefix("fd00:5:0:23::/64")
	for _, c := range []struct {
		row  backend.Entry
		want string
	}{
		{backend.Nexthop{ID: 142000035, Via: vtep, Dev: "overlay.1"}, "nexthop id 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd"},
		{backend.Route{Dst: netip.MustParsePrefix("10.5.35.0/24"), NHID: 142000035, Via: vtep, Dev: "overlay.1"},
			"10.5.35.0/24 nhid 142000035 via 10.5.35.0 dev overlay.1 onlink proto overlayd"},
		{backend.Neigh{Dev: "overlay.1", IP: vtep, MAC: mac}, "10.5.35.0 dev overlay.1 lladdr 5e:1f:00:00:00:08 PERMANENT"},
		{backend.FDB{Dev: "overlay.1", MAC: mac, Dst: netip.MustParseAddr("192.0.2.8")}, "5e:1f:00:00:00:08 dev overlay.1 dst 192.0.2.8 self permanent"},
		{backend.Route{Dst: netip.MustParsePrefix("10.5.0.0/16"), Metric: backend.UnreachableMetric},
			"unreachable 10.5.0.0/16 proto overlayd metric 4294967295"},
		{backend.Route{Dst: six, Metric: 1024, NHID: 1420000035, Via: six.Addr(), Dev: "overlay.1"},
			"fd00:5:0:23::/64 nhid 1420000035 via fd00:5:0:23:: dev overlay.1 onlink proto overlayd metric 1024"},
		{backend.Route{Dst: netip.MustParsePrefix("10.5.35.0/24"), Via: netip.MustParseAddr("192.0.2.8"), Dev: "eth0"},
			"10.5.35.0/24 via 192.0.2.8 dev eth0 onlink proto overlayd"},
		{backend.VXLAN{Name: "overlay.1", VNI: 1, Local: vtep, Dev: "eth0", Port: 8472, MAC: mac, MTU: 1450, Learning: true},
			"overlay.1: <DOWN> mtu 1450 lladdr 5e:1f:00:00:00:08 vxlan id 1 local 10.5.35.0 dev eth0 dstport 8472 learning"},
		{backend.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"}, "net/ipv4/ip_forward = 1"},
	} {
		checkText(t, c.row.String(), c.want)
	}
}
