package subnet_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

const dualStack = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`

// lease makes a good lease: number n of both families' pools, public address 192.0.2.n, a MAC with n in it.
func lease(node string, n byte, subnets ...string) subnet.Lease {
	l := subnet.Lease{
		Node: node, PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, n}), MAC: subnet.MAC{0x5e, 0x1f, 5: n}, Backend: "vxlan", Created: int64(n),
	}
	for _, text := range subnets {
		if s := netip.MustParsePrefix(text); s.Addr().Is4() {
			l.Subnet = s
		} else {
			l.Subnet6 = s
		}
	}
	return l
}

// verdict spells what became of the records, a line each.
func verdict(s subnet.Snapshot) string {
	var b strings.Builder
	for _, l := range s.Leases {
		fmt.Fprintf(&b, "%s\n", l)
	}
	for _, k := range s.Skipped {
		fmt.Fprintf(&b, "skipped %s: %s: %s; covers %v\n", k.Key, k.Reason, k.Detail, k.Subnets)
	}
	return b.String()
}

const goodOnes = "10.5.1.0/24 fd00:5:0:1::/64 of h1 via 192.0.2.1\n10.5.2.0/24 of h2 via 192.0.2.2\nfd00:5:0:3::/64 of h3 via 192.0.2.3\n"

func TestVetSkipsWhatCannotBeUsedAndKeepsTheRest(t *testing.T) {
	addr := netip.MustParseAddr
	const here = "skipped 10.5.9.0/24: "
	const covers = "; covers [10.5.9.0/24]\n"
	for _, c := range []struct {
		claim  string
		change func(*subnet.Lease) // of the lease of h9, which is good without
		want   string
	}{
		{"a good one", func(*subnet.Lease) {}, "10.5.9.0/24 of h9 via 192.0.2.9\n"},
		{"no name: a host that runs flannel", func(l *subnet.Lease) { l.Node = "" }, "10.5.9.0/24 of 192.0.2.9 via 192.0.2.9\n"},
		{"a longer one", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.9.4/30") }, "10.5.9.4/30 of h9 via 192.0.2.9\n"},
		{"a public IPv6 address", func(l *subnet.Lease) { l.PublicIP = addr("2001:db8::9") }, "10.5.9.0/24 of h9 via 2001:db8::9\n"},

		{"no subnet", func(l *subnet.Lease) { l.Subnet = netip.Prefix{} }, "skipped : outside: no subnet; covers []\n"},
		{"outside the network", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.6.9.0/24") },
			"skipped 10.6.9.0/24: outside: 10.6.9.0/24 is outside the network 10.5.0.0/16 fd00:5::/48; covers [10.6.9.0/24]\n"},
		{"outside the other network", func(l *subnet.Lease) { l.Subnet6 = netip.MustParsePrefix("fd00:6::/64") },
			"skipped 10.5.9.0/24 fd00:6::/64: outside: fd00:6::/64 is outside the network 10.5.0.0/16 fd00:5::/48; covers [10.5.9.0/24 fd00:6::/64]\n"},
		{"the whole network", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.0.0/16") },
			"skipped 10.5.0.0/16: outside: 10.5.0.0/16 is not the size of a host's subnet; covers [10.5.0.0/16]\n"},
		{"more than the network", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("0.0.0.0/0") },
			"skipped 0.0.0.0/0: outside: 0.0.0.0/0 is outside the network 10.5.0.0/16 fd00:5::/48; covers [0.0.0.0/0]\n"},
		{"no room for a pod", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.9.0/31") },
			"skipped 10.5.9.0/31: outside: 10.5.9.0/31 is not the size of a host's subnet; covers [10.5.9.0/31]\n"},

		{"an older lease's subnet", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.2.0/24") },
			"skipped 10.5.2.0/24: overlap: 10.5.2.0/24 of h9 overlaps the older lease 10.5.2.0/24; covers [10.5.2.0/24]\n"},
		{"part of it", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.2.128/25") },
			"skipped 10.5.2.128/25: overlap: 10.5.2.128/25 of h9 overlaps the older lease 10.5.2.0/24; covers [10.5.2.128/25]\n"},
		{"one of them and more", func(l *subnet.Lease) { l.Subnet = netip.MustParsePrefix("10.5.0.0/23") },
			"skipped 10.5.0.0/23: overlap: 10.5.0.0/23 of h9 overlaps the older lease 10.5.1.0/24; covers [10.5.0.0/23]\n"},
		{"an older lease's other subnet", func(l *subnet.Lease) { l.Subnet6 = netip.MustParsePrefix("fd00:5:0:3::/64") },
			"skipped 10.5.9.0/24 fd00:5:0:3::/64: overlap: fd00:5:0:3::/64 of h9 overlaps the older lease fd00:5:0:3::/64; covers [10.5.9.0/24 fd00:5:0:3::/64]\n"},

		{"no MAC", func(l *subnet.Lease) { l.MAC = subnet.MAC{} }, here + "mac: MAC 00:00:00:00:00:00 is not a unicast address" + covers},
		{"a group's MAC", func(l *subnet.Lease) { l.MAC[0] = 0x5f }, here + "mac: MAC 5f:1f:00:00:00:09 is not a unicast address" + covers},
		{"an older lease's MAC", func(l *subnet.Lease) { l.MAC[5] = 2 }, here + "mac: MAC 5e:1f:00:00:00:02 is in the older lease of h2" + covers},

		{"no public address", func(l *subnet.Lease) { l.PublicIP = netip.Addr{} }, here + "public-ip: public address invalid IP is not a unicast address" + covers},
		{"0.0.0.0", func(l *subnet.Lease) { l.PublicIP = addr("0.0.0.0") }, here + "public-ip: public address 0.0.0.0 is not a unicast address" + covers},
		{"loopback", func(l *subnet.Lease) { l.PublicIP = addr("127.0.0.1") }, here + "public-ip: public address 127.0.0.1 is not a unicast address" + covers},
		{"link-local", func(l *subnet.Lease) { l.PublicIP = addr("fe80::9") }, here + "public-ip: public address fe80::9 is not a unicast address" + covers},
		{"multicast", func(l *subnet.Lease) { l.PublicIP = addr("239.1.1.1") }, here + "public-ip: public address 239.1.1.1 is not a unicast address" + covers},
		{"broadcast", func(l *subnet.Lease) { l.PublicIP = addr("255.255.255.255") }, here + "public-ip: public address 255.255.255.255 is not a unicast address" + covers},
		{"a pod's address", func(l *subnet.Lease) { l.PublicIP = addr("10.5.77.7") },
			here + "public-ip: public address 10.5.77.7 is inside the network 10.5.0.0/16 itself" + covers},
		{"a pod's IPv6 address", func(l *subnet.Lease) { l.PublicIP = addr("fd00:5::7") },
			here + "public-ip: public address fd00:5::7 is inside the network fd00:5::/48 itself" + covers},
		{"an older lease's public address", func(l *subnet.Lease) { l.PublicIP = addr("192.0.2.3") },
			here + "public-ip: public address 192.0.2.3 is in the older lease of h3" + covers},

		{"an older lease's node", func(l *subnet.Lease) { l.Node = "h1" }, here + "node: node h1 has the older lease 10.5.1.0/24" + covers},
	} {
		t.Run(c.claim, func(t *testing.T) {
			nine := lease("h9", 9, "10.5.9.0/24")
			c.change(&nine)
			s := subnet.Vet(7, parse(t, dualStack), []subnet.Lease{
				lease("h3", 3, "fd00:5:0:3::/64"), nine, lease("h1", 1, "10.5.1.0/24", "fd00:5:0:1::/64"), lease("h2", 2, "10.5.2.0/24"),
			}, nil, nil)
			if got, want := verdict(s), goodOnes+c.want; got != want {
				t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// ::ffff:192.0.2.2 is no address on any wire. As another spelling of 192.0.2.2 it would slip past every comparison.
func TestVetTakesNoIPv4AddressInIPv6Spelling(t *testing.T) {
	for _, public := range []string{"::ffff:192.0.2.2", "::ffff:10.5.77.7", "::ffff:198.51.100.9"} {
		nine := lease("h9", 9, "10.5.9.0/24")
		nine.PublicIP = netip.MustParseAddr(public)
		s := subnet.Vet(7, parse(t, dualStack), []subnet.Lease{lease("h2", 2, "10.5.2.0/24"), nine}, nil, nil)
		if len(s.Leases) != 1 || len(s.Skipped) != 1 || s.Skipped[0].Reason != subnet.ReasonPublicIP {
			t.Errorf("public address %s\n got:\n%s\nwant the lease of h9 skipped: %s", public, verdict(s), subnet.ReasonPublicIP)
		}
	}
}

func TestVetPrefersTheOldest(t *testing.T) {
	young, old, twin := lease("young", 2, "10.5.9.0/24"), lease("old", 1, "10.5.9.0/24"), lease("twin", 1, "10.5.9.128/25")
	for _, c := range []struct {
		claim  string
		leases []subnet.Lease
		want   string
	}{
		{"listed last", []subnet.Lease{young, old}, "old"},
		{"listed first", []subnet.Lease{old, young}, "old"},
		{"of one age, the same on every host", []subnet.Lease{twin, old}, "old"},
		{"of one age, listed the other way", []subnet.Lease{old, twin}, "old"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := subnet.Vet(7, parse(t, dualStack), c.leases, nil, nil)
			if len(s.Leases) != 1 || s.Leases[0].Node != c.want {
				t.Errorf("\n got:\n%s\nwant the lease of %s alone", verdict(s), c.want)
			}
		})
	}
}

// Otherwise a bad record could keep a good one out.
func TestVetLetsASkippedLeaseClaimNothing(t *testing.T) {
	bad := lease("h2", 2, "10.5.2.0/24")
	bad.Created, bad.MAC = 1, subnet.MAC{}
	good := lease("h2", 2, "10.5.2.0/24")
	s := subnet.Vet(7, parse(t, dualStack), []subnet.Lease{bad, good}, nil, nil)
	want := "10.5.2.0/24 of h2 via 192.0.2.2\nskipped 10.5.2.0/24: mac: MAC 00:00:00:00:00:00 is not a unicast address; covers [10.5.2.0/24]\n"
	if got := verdict(s); got != want {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
}

func TestVetSkipsAFamilyThatIsOff(t *testing.T) {
	c := parse(t, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`)
	s := subnet.Vet(7, c, []subnet.Lease{lease("h1", 1, "10.5.1.0/24"), lease("h2", 2, "fd00:5:0:2::/64")}, nil, nil)
	want := "fd00:5:0:2::/64 of h2 via 192.0.2.2\n" +
		"skipped 10.5.1.0/24: outside: 10.5.1.0/24 is outside the network fd00:5::/48; covers [10.5.1.0/24]\n"
	if got := verdict(s); got != want {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
}

func TestVetKeepsWhatItWasGiven(t *testing.T) {
	held := []subnet.Held{{Subnet: netip.MustParsePrefix("10.5.9.0/24"), Node: "h9", Rank: 3}}
	unreadable := []subnet.Skipped{{Key: "junk", Reason: subnet.ReasonKey, Detail: "not a subnet"}}
	leases := []subnet.Lease{lease("h1", 1, "10.5.1.0/24"), lease("h7", 7, "10.6.7.0/24")}
	s := subnet.Vet(7, parse(t, dualStack), leases, held, unreadable)
	if s.Revision != 7 || len(s.Held) != 1 || s.Held[0] != held[0] || len(s.Skipped) != 2 || s.Skipped[0].Key != "10.6.7.0/24" || s.Skipped[1].Key != "junk" {
		t.Errorf("revision %d, held %v\n%s", s.Revision, s.Held, verdict(s))
	}
}
