package e2e

import (
	"slices"
)

// acts is the catalogue.
func acts() []act {
	return slices.Concat(deviceActs(), bridgeActs(), rowActs(), peerActs(), strangerActs(), knobActs(), tableActs(), ruleActs(), firewallActs(), underlayActs())
}

const (
	seeDevice  = "ip -d -o link show overlay.1"
	wantDevice = `<[A-Z,_]*\bUP\b.* mtu 1450 .* link/ether {mac} .* vxlan id 1 local 192.0.2.7 dev eth0 .*dstport 8472 (.* )?nolearning`
	seeRoute   = "ip route show 10.5.35.0/24"
	wantRoute  = `^10.5.35.0/24 nhid {hop} via 10.5.35.0 dev overlay.1 proto overlayd onlink`
	ofDevice   = `overlay\.1|nhid|id \d+ via|{peermac}` // what goes with the device
)

func deviceActs() []act {
	see, want := seeDevice, wantDevice
	return []act{
		{name: "VXLAN device deleted", do: "ip link del overlay.1", see: see, want: want, kind: "vxlan", mended: `\+ overlay.1: `, gone: ofDevice},
		{name: "VXLAN device down", do: "ip link set overlay.1 down", see: see, want: want, kind: "vxlan", mended: `~ overlay.1: `, gone: ofDevice},
		{name: "VXLAN device down and up", do: "ip link set overlay.1 down; ip link set overlay.1 up", see: seeRoute, want: wantRoute, kind: "route", mended: `\+ 10.5.35.0/24 `, gone: ofDevice},
		{name: "VXLAN device renamed", do: "ip link set overlay.1 name stolen", see: see, want: want, kind: "vxlan", mended: `overlay.1: `, gone: ofDevice + "|stolen"},
		{name: "VXLAN device with another MAC", do: "ip link set overlay.1 address 02:00:00:00:00:66", see: see, want: want, kind: "vxlan", mended: `~ overlay.1: `, gone: ofDevice},
		{name: "VXLAN device with another MTU", do: "ip link set overlay.1 mtu 1400", see: see, want: want, kind: "vxlan", mended: `~ overlay.1: `},
		{name: "VXLAN device with an MTU too small for IPv6", do: "ip link set overlay.1 mtu 1000", see: "ip -6 -o addr show overlay.1", want: `{own6}/128`, kind: "addr", mended: `inet6 {own6}/128`, gone: `fd00:5|overlay\.1`},
		{name: "VXLAN device learns", do: "ip link set overlay.1 type vxlan learning", see: see, want: want, kind: "vxlan", mended: `~ overlay.1: `, gone: ofDevice},
		{name: "VXLAN device with another local address", do: "ip link set overlay.1 type vxlan id 1 local 192.0.2.99 dev eth0", see: see, want: want, kind: "vxlan", mended: `~ overlay.1: `},
		{name: "VXLAN device with another VNI", calm: true, do: "ip link del overlay.1; ip link add overlay.1 type vxlan id 2 local 192.0.2.7 dev eth0 dstport 8472", see: see, want: want, kind: "vxlan", mended: `overlay.1: `, gone: ofDevice},
		{name: "VXLAN device with another port", calm: true, do: "ip link del overlay.1; ip link add overlay.1 type vxlan id 1 local 192.0.2.7 dev eth0 dstport 4789", see: see, want: want, kind: "vxlan", mended: `overlay.1: `, gone: ofDevice},
		{name: "VXLAN device loses its IPv4 address", do: "ip addr del 10.5.34.0/32 dev overlay.1", see: "ip -o addr show overlay.1", want: `inet 10.5.34.0/32`, kind: "addr", mended: `\+ inet 10.5.34.0/32`, gone: ofDevice},
		{name: "VXLAN device loses its IPv6 address", do: "ip addr del {own6}/128 dev overlay.1", see: "ip -o addr show overlay.1", want: `inet6 {own6}/128`, kind: "addr", mended: `\+ inet6 {own6}/128`, gone: `inet6 {own6}`},
		{name: "VXLAN device loses all addresses", calm: true, do: "ip addr flush dev overlay.1", see: "ip -o addr show overlay.1", want: `inet 10.5.34.0/32`, kind: "addr", mended: `\+ inet 10.5.34.0/32`, gone: ofDevice},
		{name: "VXLAN device gets an address", do: "ip addr add 10.99.0.1/24 dev overlay.1", see: "ip -o addr show overlay.1 | grep -c inet", want: `^[23]$`, kind: "addr", mended: `- inet 10.99.0.1/24`, gone: `10\.99`},
		{
			name: "bridge of our VXLAN device's name", calm: true, do: "ip link del overlay.1; ip link add overlay.1 type bridge", see: see, stays: `bridge forward_delay`,
			named: `a bridge device has the name overlay.1: rename or remove it`, fault: true, undo: "ip link del overlay.1", want: want, gone: ofDevice,
		},
	}
}

func bridgeActs() []act {
	const see, want, gone = "ip -d -o link show ovl0", `<[A-Z,_]*\bUP\b.* mtu 1450 .* link/ether {bridgemac} .* bridge `, `ovl0|{gateway6}|Deleted dev veth`
	return []act{
		{name: "bridge deleted", do: "ip link del ovl0", see: "ip -o link show {port}", want: `master ovl0`, kind: "bridge", mended: `\+ ovl0: `, gone: gone},
		{name: "bridge down", do: "ip link set ovl0 down", see: see, want: want, kind: "bridge", mended: `~ ovl0: `, gone: gone},
		{name: "bridge renamed", do: "ip link set ovl0 name stolen", see: "ip -o link show {port}", want: `master ovl0`, kind: "bridge", mended: `ovl0: `, gone: gone + "|stolen|element bridge overlayd"}, // pods on another bridge are not the plan's
		{name: "bridge with another MAC", do: "ip link set ovl0 address 02:00:00:00:00:67", see: see, want: want, kind: "bridge", mended: `~ ovl0: `, gone: gone},
		{name: "bridge with another MTU", do: "ip link set ovl0 mtu 1300", see: see, want: want, kind: "bridge", mended: `~ ovl0: `},
		{name: "bridge loses its IPv4 address", do: "ip addr del 10.5.34.1/24 dev ovl0", see: "ip -o addr show ovl0", want: `inet 10.5.34.1/24`, kind: "addr", mended: `\+ inet 10.5.34.1/24`, gone: gone},
		{name: "bridge loses its IPv6 address", do: "ip addr del {gateway6} dev ovl0", see: "ip -o addr show ovl0", want: `inet6 {gateway6}`, kind: "addr", mended: `\+ inet6 {gateway6}`, gone: gone},
		{name: "bridge gets an address", do: "ip addr add 10.98.0.1/24 dev ovl0", see: "ip -o addr show ovl0 | grep -c 'inet '", want: `^1$`, kind: "addr", mended: `- inet 10.98.0.1/24`, gone: `10\.98`},
		{name: "pod's port pulled off the bridge", do: "ip link set {port} nomaster", see: "ip -o link show {port}", want: `master ovl0`, kind: "port", mended: `{port} master ovl0`, gone: `Deleted dev veth`},
		{name: "pod's port without hairpin", do: "bridge link set dev {port} hairpin off", see: "bridge -d link show dev {port}", want: `hairpin on`, kind: "port", mended: `{port} master ovl0`},
	}
}

func rowActs() []act {
	const (
		see6, want6   = "ip -6 route show {net6}", `^{net6} nhid {hop6} via {vtep6} dev overlay.1 proto overlayd metric 1024 onlink`
		seeHop        = "ip nexthop show id {hop}"
		wantHop       = `^id {hop} via 10.5.35.0 dev overlay.1 .*proto overlayd onlink`
		seeNone       = "ip route show type unreachable proto 142; ip -6 route show type unreachable proto 142"
		lost          = `10\.5\.35\.0/24`
		lostHop       = `id {hop}|nhid {hop}`
		every         = `nhid|id \d+ via|unreachable`
		unreachable4  = `^unreachable 10.5.0.0/16 `
		unreachable6  = `^unreachable fd00:5::/48 `
		byAnotherHop  = "ip nexthop add id 99 via 192.0.2.250 dev eth0 proto 142; ip route change 10.5.35.0/24 nhid 99 proto 142"
		anotherOfOurs = "ip route replace 10.5.35.0/24 via 192.0.2.250 dev eth0 proto 142"
	)
	return []act{
		{name: "route deleted", do: "ip route del 10.5.35.0/24", see: seeRoute, want: wantRoute, kind: "route", mended: `\+ 10.5.35.0/24 `, gone: lost},
		{name: "IPv6 route deleted", do: "ip -6 route del {net6}", see: see6, want: want6, kind: "route", mended: `\+ {net6} `, gone: `{net6}`},
		{name: "route altered", do: anotherOfOurs, see: seeRoute, want: wantRoute, kind: "route", mended: `~ 10.5.35.0/24 `, gone: lost},
		{name: "route altered to another nexthop", calm: true, do: byAnotherHop, see: seeRoute, want: wantRoute, kind: "route", mended: `~ 10.5.35.0/24 `, gone: lost + "|id 99"},
		{name: "all our routes deleted", do: "ip route del 10.5.35.0/24; ip route del unreachable 10.5.0.0/16; ip -6 route del {net6}; ip -6 route del unreachable fd00:5::/48 metric 4294967295", calm: true, see: seeRoute, want: wantRoute, kind: "route", mended: `\+ 10.5.35.0/24 `, gone: every},
		{name: "route added as ours", do: "ip route add 10.5.99.0/24 via 10.5.35.0 dev overlay.1 onlink proto 142", see: "ip route show proto 142 | grep -c .", want: `^2$`, kind: "route", mended: `- 10.5.99.0/24 `, gone: `10\.5\.99`},
		{name: "unreachable route removed", do: "ip route del unreachable 10.5.0.0/16", see: seeNone, want: unreachable4, kind: "route", mended: `\+ unreachable 10.5.0.0/16`, gone: "unreachable"},
		{name: "IPv6 unreachable route removed", do: "ip -6 route del unreachable fd00:5::/48 metric 4294967295", see: seeNone, want: unreachable6, kind: "route", mended: `\+ unreachable fd00:5::/48`, gone: "unreachable"},
		{name: "nexthop deleted", do: "ip nexthop del id {hop}", see: seeHop, want: wantHop, kind: "nexthop", mended: `\+ nexthop id {hop} `, gone: lostHop},
		{name: "nexthop altered", do: "ip nexthop replace id {hop} via 10.5.77.0 dev overlay.1 onlink proto 142", see: seeHop, want: wantHop, kind: "nexthop", mended: `~ nexthop id {hop} `},
		{name: "nexthops flushed", calm: true, do: "ip nexthop flush proto 142", see: seeHop, want: wantHop, kind: "nexthop", mended: `\+ nexthop id {hop} `, gone: every},
	}
}

func peerActs() []act {
	const (
		seeNeigh, wantNeigh   = "ip neigh show dev overlay.1 nud permanent", `^10.5.35.0 lladdr {peermac} PERMANENT`
		wantNeigh6            = `^{vtep6} lladdr {peermac} PERMANENT`
		seeFDB, wantFDB       = "bridge fdb show dev overlay.1", `^{peermac} dst 192.0.2.8 self permanent`
		mendedNeigh           = `10.5.35.0 dev overlay.1 lladdr {peermac}`
		goneNeigh, goneNeigh6 = `10\.5\.35\.0 dev`, `{vtep6} dev`
		goneFDB               = `192\.0\.2\.(8|99) dev overlay.1`
	)
	return []act{
		{name: "neighbour deleted", do: "ip neigh del 10.5.35.0 dev overlay.1", see: seeNeigh, want: wantNeigh, kind: "neigh", mended: `\+ ` + mendedNeigh, gone: goneNeigh},
		{name: "IPv6 neighbour deleted", do: "ip neigh del {vtep6} dev overlay.1", see: seeNeigh, want: wantNeigh6, kind: "neigh", mended: `\+ {vtep6} dev`, gone: goneNeigh6},
		{name: "neighbour altered", do: "ip neigh replace 10.5.35.0 lladdr 02:00:00:00:00:99 nud permanent dev overlay.1", see: seeNeigh, want: wantNeigh, kind: "neigh", mended: `~ ` + mendedNeigh},
		{name: "neighbour that may age", do: "ip neigh change 10.5.35.0 nud reachable dev overlay.1", see: seeNeigh, want: wantNeigh, kind: "neigh", mended: `[~+] ` + mendedNeigh},
		{name: "neighbours flushed", calm: true, do: "ip neigh flush dev overlay.1 nud permanent", see: seeNeigh, want: wantNeigh, kind: "neigh", mended: `\+ ` + mendedNeigh, gone: goneNeigh + "|" + goneNeigh6},
		{name: "FDB entry deleted", do: "bridge fdb del {peermac} dev overlay.1", see: seeFDB, want: wantFDB, kind: "fdb", mended: `\+ {peermac} dev overlay.1`, gone: goneFDB},
		{name: "FDB entry altered", do: "bridge fdb replace {peermac} dev overlay.1 dst 192.0.2.99 self permanent", see: seeFDB, want: wantFDB, kind: "fdb", mended: `~ {peermac} dev overlay.1`},
		{name: "FDB entry to another port", do: "bridge fdb replace {peermac} dev overlay.1 dst 192.0.2.8 port 4789 self permanent", see: seeFDB, want: wantFDB, kind: "fdb", mended: `~ {peermac} dev overlay.1`},
		{name: "FDB flushed", calm: true, do: "bridge fdb flush dev overlay.1", see: seeFDB, want: wantFDB, kind: "fdb", mended: `\+ {peermac} dev overlay.1`, gone: goneFDB},
		{name: "stranger in the FDB", do: "bridge fdb append 00:00:00:00:00:00 dev overlay.1 dst 192.0.2.66 self permanent", see: seeFDB + " | grep -c .", want: `^1$`, kind: "fdb", mended: `- 00:00:00:00:00:00 dev overlay.1`, gone: `192\.0\.2\.66`},
		{name: "stranger among the neighbours", do: "ip neigh replace 10.5.77.0 lladdr 02:00:00:00:00:77 nud permanent dev overlay.1", see: seeNeigh + " | grep -c .", want: `^2$`, kind: "neigh", mended: `- 10.5.77.0 dev overlay.1`, gone: `10\.5\.77\.0`},
	}
}

// strangerActs leave alone what others make.
func strangerActs() []act {
	return []act{
		{
			name: "foreign route in the way", do: "ip route replace 10.5.35.0/24 via 192.0.2.250 dev eth0", see: seeRoute, want: wantRoute, gone: `10\.5\.35\.0/24`,
			stays: `^10.5.35.0/24 via 192.0.2.250 dev eth0`, named: `since .*route 10\.5\.35\.0/24 via 192\.0\.2\.250 dev eth0 proto boot has its place`, fault: true,
			undo: "ip route del 10.5.35.0/24 via 192.0.2.250",
		},
		{
			name: "foreign IPv6 route in the way", calm: true, do: "ip -6 route del {net6}; ip -6 route add {net6} dev eth0 metric 1024", see: "ip -6 route show {net6}", want: `nhid {hop6} via {vtep6}`, gone: `{net6}`,
			stays: `^{net6} dev eth0`, named: `since .*route {net6}.* has its place`, fault: true,
			undo: "ip -6 route del {net6} dev eth0 metric 1024",
		},
		{name: "foreign routes, rule and nexthop beside ours", see: seeRoute, want: wantRoute, hand: (*scene).plantMore},
		{
			name: "foreign route on our device", do: "ip route add 10.5.35.7 dev overlay.1 proto static", see: "ip route show 10.5.35.7; " + seeRoute, stays: `^10.5.35.7 dev overlay.1 proto static`,
			named: "ready", undo: "ip route del 10.5.35.7 dev overlay.1", want: wantRoute,
		},
	}
}
