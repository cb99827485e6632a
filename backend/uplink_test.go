package backend_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
)

// ifaces are the devices of a host with two uplinks, docker and one device without address.
func ifaces() []backend.Iface {
	prefixes := func(texts ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	return []backend.Iface{
		{Name: "docker0", Up: true, MTU: 1500, Addrs: prefixes("172.17.0.1/16")},
		{Name: "eth0", Up: true, MTU: 1500, Addrs: prefixes("2001:db8::7/64", "192.0.2.7/24", "192.0.2.77/24"), Default: true},
		{Name: "eth1", Up: true, MTU: 9000, Addrs: prefixes("198.51.100.7/25", "198.51.100.77/25"), Reaches: netip.MustParseAddr("198.51.100.77")},
		{Name: "eth10", Up: true, MTU: 1500, Addrs: prefixes("2001:db8:1::7/64")},
		{Name: "eth2", Up: true, MTU: 1500},
	}
}

// uplinkText spells an uplink as the tables below do.
func uplinkText(u backend.Uplink) string {
	return fmt.Sprintf("%s %s mtu %d %v", u.Name, u.Addr, u.MTU, u.OnLink)
}

func TestUplinkIsTheOneChosen(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::99")
	const eth0, eth1 = "eth0 192.0.2.7 mtu 1500 [2001:db8::/64 192.0.2.0/24 192.0.2.0/24]", "eth1 198.51.100.7 mtu 9000 [198.51.100.0/25 198.51.100.0/25]"
	const eth10 = "eth10 2001:db8:1::7 mtu 1500 [2001:db8:1::/64]"
	reaching := strings.Replace(eth1, "198.51.100.7 ", "198.51.100.77 ", 1)
	for _, c := range []struct {
		claim  string
		choice backend.Choice
		want   string
	}{
		{"the default route's", backend.Choice{}, eth0},
		{"by name", backend.Choice{Ifaces: []string{"eth1"}}, eth1},
		{"by address", backend.Choice{Ifaces: []string{"198.51.100.7"}}, eth1},
		{"by its second address, which is then the source", backend.Choice{Ifaces: []string{"192.0.2.77"}},
			"eth0 192.0.2.77 mtu 1500 [2001:db8::/64 192.0.2.0/24 192.0.2.0/24]"},
		{"by IPv6 address", backend.Choice{Ifaces: []string{"2001:db8:1::7"}}, eth10},
		{"by pattern", backend.Choice{Ifaces: []string{`eth\d`}}, eth0},
		{"by a pattern for the whole name: eth1 is not eth10", backend.Choice{Ifaces: []string{"eth.0"}}, eth10},
		{"by a pattern with alternatives, each for the whole name", backend.Choice{Ifaces: []string{"eth|eth1"}}, eth1},
		{"by the first wish that comes true", backend.Choice{Ifaces: []string{"wlan0", "203.0.113.1", "eth1", "eth0"}}, eth1},
		{"by what it reaches, with the source on that way", backend.Choice{CanReach: netip.MustParseAddr("198.51.100.1")}, reaching},
		{"by what it reaches, before a name", backend.Choice{CanReach: netip.MustParseAddr("198.51.100.1"), Ifaces: []string{"eth0"}}, reaching},
		{"IPv6 for want of IPv4", backend.Choice{Ifaces: []string{"eth10"}}, eth10},
		{"IPv4 as the public address is", backend.Choice{PublicIP: netip.MustParseAddr("203.0.113.7")}, eth0},
		{"IPv6 as the public address is", backend.Choice{PublicIP: six}, strings.Replace(eth0, "192.0.2.7", "2001:db8::7", 1)},
	} {
		t.Run(c.claim, func(t *testing.T) {
			u, err := c.choice.Uplink(ifaces())
			if got := uplinkText(u); err != nil || got != c.want {
				t.Errorf("\n got %s (%v)\nwant %s", got, err, c.want)
			}
		})
	}
}

func TestUplinkErrorNamesWhatWasTried(t *testing.T) {
	const there = "docker0 (172.17.0.1/16), eth0 (2001:db8::7/64 192.0.2.7/24 192.0.2.77/24), eth1 (198.51.100.7/25 198.51.100.77/25), eth10 (2001:db8:1::7/64), eth2 (none)"
	none := []backend.Iface{}
	for _, c := range []struct {
		claim  string
		choice backend.Choice
		ifaces []backend.Iface
		want   string
	}{
		{"no such name, address or pattern", backend.Choice{Ifaces: []string{"wlan0", "203.0.113.1", "th1"}}, ifaces(),
			"no uplink: --iface wlan0, 203.0.113.1, th1 matches none of " + there},
		{"no pattern at all", backend.Choice{Ifaces: []string{"eth["}}, ifaces(), "no uplink: --iface eth[ matches none of " + there},
		{"no device at all", backend.Choice{Ifaces: []string{"eth0"}}, none, "no uplink: --iface eth0 matches none of no device at all"},
		{"no default route", backend.Choice{}, ifaces()[2:3],
			"no uplink: there is no default route: name the device with --iface, one of eth1 (198.51.100.7/25 198.51.100.77/25)"},
		{"nothing reaches it", backend.Choice{CanReach: netip.MustParseAddr("203.0.113.1")}, ifaces()[:2],
			"no uplink: no route to --iface-can-reach 203.0.113.1: add one or name the device with --iface"},
		{"no address", backend.Choice{Ifaces: []string{"eth2"}}, ifaces(),
			"no uplink: eth2 has no usable address (it has none): give it one, or name another device with --iface"},
		{"no address of the public one's family", backend.Choice{Ifaces: []string{"eth1"}, PublicIP: netip.MustParseAddr("2001:db8::99")}, ifaces(),
			"no uplink: eth1 has no usable address (it has 198.51.100.7/25 198.51.100.77/25): give it one, or name another device with --iface"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			u, err := c.choice.Uplink(c.ifaces)
			if !errors.Is(err, backend.ErrUplink) || err.Error() != c.want {
				t.Errorf("\n got %v (%s)\nwant %s", err, uplinkText(u), c.want)
			}
		})
	}
}

// Peers send to the public address, and one VXLAN device speaks one family.
func TestUplinkSourceIsNeverOfAnotherFamilyThanThePublicAddress(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::99")
	for _, c := range []struct {
		claim  string
		choice backend.Choice
	}{
		{"by address", backend.Choice{Ifaces: []string{"192.0.2.77"}, PublicIP: six}},
		{"by what it reaches", backend.Choice{CanReach: netip.MustParseAddr("198.51.100.1"), PublicIP: six}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			u, err := c.choice.Uplink(ifaces())
			if err == nil && u.Addr.Is4() || err != nil && !errors.Is(err, backend.ErrUplink) {
				t.Errorf("public address %s\n got %s (%v)\nwant an IPv6 source or %v", six, uplinkText(u), err, backend.ErrUplink)
			}
		})
	}
}
