package subnet_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/subnet"
)

// nodeFile describes h1 with the given subnets.
func nodeFile(t *testing.T, subnets ...string) subnet.NodeFile {
	t.Helper()
	f := subnet.NewNodeFile(parse(t, dualStack), lease("h1", 1, subnets...))
	f.Boot, f.Deadline, f.Bridge, f.MTU = "8d1b1a5e", 86_400_000_000_000, "ovl0", 1450
	return f
}

func TestNodeFileIsReadAsItWasWritten(t *testing.T) {
	for _, subnets := range [][]string{
		{"10.5.34.0/24"},
		{"fd00:5:0:22::/64"},
		{"10.5.34.0/24", "fd00:5:0:22::/64"},
	} {
		t.Run(strings.Join(subnets, " "), func(t *testing.T) {
			want := nodeFile(t, subnets...)
			got, err := subnet.ParseNodeFile(want.Text())
			if err != nil {
				t.Fatalf("%s%v", want.Text(), err)
			}
			if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
				t.Errorf("%s(-written +read)\n%s", want.Text(), d)
			}
		})
	}
}

// The plugin of one release reads what the daemon of the next one wrote, for a moment: a change here is a new version.
func TestNodeFileHasItsSpelling(t *testing.T) {
	const want = `{
  "version": 1,
  "node": "h1",
  "boot": "8d1b1a5e",
  "deadline": 86400000000000,
  "networks": [
    "10.5.0.0/16",
    "fd00:5::/48"
  ],
  "subnets": [
    "10.5.34.0/24",
    "fd00:5:0:22::/64"
  ],
  "gateways": [
    "10.5.34.1",
    "fd00:5:0:22::1"
  ],
  "bridge": "ovl0",
  "mtu": 1450
}
`
	if got := string(nodeFile(t, "10.5.34.0/24", "fd00:5:0:22::/64").Text()); got != want {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
}

func TestParseNodeFileRefuses(t *testing.T) {
	changed := func(change func(*subnet.NodeFile)) string {
		f := nodeFile(t, "10.5.34.0/24")
		change(&f)
		return string(f.Text())
	}
	good := changed(func(*subnet.NodeFile) {})
	for _, c := range []struct{ claim, text, want string }{
		{"nothing", "", "not readable"},
		{"half a file", good[:len(good)/2], "not readable"},
		{"a file and more", good + "{}", "not readable"},
		{"an address that is none", strings.ReplaceAll(good, "10.5.34.1", "10.5.34"), "not readable"},
		{"no version", `{"subnets": ["10.5.34.0/24"]}`, "version 0: this program reads version 1"},
		{"a later version", changed(func(f *subnet.NodeFile) { f.Version = 2 }), "version 2: this program reads version 1"},
		{"no subnet", changed(func(f *subnet.NodeFile) { f.Subnets, f.Networks, f.Gateways = nil, nil, nil }),
			"0 networks, 0 subnets and 0 gateways"},
		{"no gateway", changed(func(f *subnet.NodeFile) { f.Gateways = nil }), "1 networks, 1 subnets and 0 gateways"},
		{"no network", changed(func(f *subnet.NodeFile) { f.Networks = nil }), "0 networks, 1 subnets and 1 gateways"},
		{"an empty subnet", changed(func(f *subnet.NodeFile) { f.Subnets[0] = netip.Prefix{} }), "is outside the subnet"},
		{"an empty gateway", changed(func(f *subnet.NodeFile) { f.Gateways[0] = netip.Addr{} }), "is outside the subnet 10.5.34.0/24"},
		{"a gateway elsewhere", changed(func(f *subnet.NodeFile) { f.Gateways[0] = netip.MustParseAddr("10.5.35.1") }),
			"gateway 10.5.35.1 is outside the subnet 10.5.34.0/24"},
		{"an MTU below zero", changed(func(f *subnet.NodeFile) { f.MTU = -1 }), "MTU -1: want 0 to 65535"},
		{"an MTU that is too large", changed(func(f *subnet.NodeFile) { f.MTU = 65536 }), "MTU 65536: want 0 to 65535"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			_, err := subnet.ParseNodeFile([]byte(c.text))
			if !errors.Is(err, subnet.ErrNodeFile) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s\n got %v\nwant %s in it", c.text, err, c.want)
			}
		})
	}
}

func TestNodeFileIsUsableInItsBootUntilItsDeadline(t *testing.T) {
	const second = 1_000_000_000
	for _, c := range []struct {
		claim    string
		boot     string
		deadline int64
		now      int64
		want     string // empty: usable
	}{
		{"before the deadline", "8d1b1a5e", 100 * second, 99 * second, ""},
		{"at the deadline", "8d1b1a5e", 100 * second, 100 * second, ""},
		{"after the deadline", "8d1b1a5e", 100 * second, 107 * second, "node file: the lease of 10.5.34.0/24 ended 7 s ago"},
		{"deadline unknown", "8d1b1a5e", 0, 1 << 62, ""},
		{"another boot", "00000000", 100 * second, 5 * second, "node file: written before the last reboot"},
		{"another boot, deadline unknown", "00000000", 0, 5 * second, "node file: written before the last reboot"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			f := nodeFile(t, "10.5.34.0/24")
			f.Deadline = c.deadline
			err := f.Usable(c.boot, c.now)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("\n got %v\nwant it usable", err)
			case c.want != "" && (!errors.Is(err, subnet.ErrNodeFile) || err.Error() != c.want):
				t.Errorf("\n got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestSubnetEnvHasFlannelsNames(t *testing.T) {
	const (
		v4  = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\n"
		v6  = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:22::1/64\n"
		end = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	)
	for _, c := range []struct {
		subnets []string
		want    string
	}{
		{[]string{"10.5.34.0/24"}, v4 + end},
		{[]string{"fd00:5:0:22::/64"}, v6 + end},
		{[]string{"10.5.34.0/24", "fd00:5:0:22::/64"}, v4 + v6 + end},
	} {
		t.Run(strings.Join(c.subnets, " "), func(t *testing.T) {
			if got := string(nodeFile(t, c.subnets...).SubnetEnv()); got != c.want {
				t.Errorf("\n got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestAltNameIsTheAddressWithoutColons(t *testing.T) {
	for _, c := range []struct{ addr, name string }{
		{"10.5.34.7", "10.5.34.7"},
		{"::ffff:10.5.34.7", "10.5.34.7"},
		{"fd00:5:0:22::7", "fd00-5-0-22--7"},
		{"fd00:5:ffff:ffff:ffff:ffff:ffff:fffe", "fd00-5-ffff-ffff-ffff-ffff-ffff-fffe"},
	} {
		a := netip.MustParseAddr(c.addr)
		if got := subnet.AltName(a); got != c.name {
			t.Errorf("%s\n got %s\nwant %s", a, got, c.name)
		}
		if got, ok := subnet.ParseAltName(c.name); !ok || got != a.Unmap() {
			t.Errorf("%s\n got %s, %t\nwant %s", c.name, got, ok, a.Unmap())
		}
	}
	for _, name := range []string{"", "eth0", "veth3c9a71be0d4", "10.5.34", "10.5.34.07", "FD00-5--7", "fd00-0--7", "--ffff-10.5.34.7"} {
		if a, ok := subnet.ParseAltName(name); ok {
			t.Errorf("%q is read as %s, want nothing", name, a)
		}
	}
}
