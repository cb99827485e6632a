package kernel_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// ruleset is what "nft list ruleset" prints.
func ruleset(t testing.TB, flags ...string) string {
	t.Helper()
	text, err := exec.Command("nft", append(flags, "list", "ruleset")...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, text)
	}
	return string(text)
}

// debians is the version whose words the golden text has: others print some of them otherwise.
const debians = "v1.0.6"

// TestNFTPrintsWhatWeMade readably, loads it again, and one pass makes of that what it was.
func TestNFTPrintsWhatWeMade(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	attach(t, "pod1", 1450, "10.5.34.8", "fd00:5:0:22::8")
	pass(t, k, network)
	got := ruleset(t)
	golden := filepath.Join("testdata", "ruleset.golden")
	if *update {
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if version, err := exec.Command("nft", "--version").Output(); err == nil && strings.Contains(string(version), debians) {
		checkText(t, "nft list ruleset", got, string(want))
	} else {
		t.Logf("what %.20s prints is not compared (%v)", version, err)
	}
	loadAgain(t, k, network, got)
}

// loadAgain saves and restores the ruleset as an admin would.
func loadAgain(t *testing.T, k backend.Kernel, network subnet.Snapshot, text string) {
	t.Helper()
	nft(t, "flush ruleset\n"+text)
	for _, c := range pass(t, k, network) {
		if _, table := c.New.(backend.Table); !table {
			t.Errorf("it is not loaded: %s", c)
		}
	}
	checkText(t, "after loading it again", ruleset(t), text)
}

// TestNFTLoadsWhatItPrintsOfAnyFilter: each is made, printed, loaded and settled.
func TestNFTLoadsWhatItPrintsOfAnyFilter(t *testing.T) {
	plugIn(t)
	ip(t, "addr add 2001:db8:7::7/64 dev eth0 nodad")
	six := func(s *subnet.Snapshot) {
		for i := range s.Leases {
			s.Leases[i].PublicIP = netip.MustParseAddr("2001:db8:7::" + string(rune('7'+i)))
		}
	}
	for _, c := range []struct {
		claim   string
		options func(*kernel.Options)
		network func(*subnet.Snapshot)
		prints  string
	}{
		{"guard vtep", func(o *kernel.Options) { o.Guard = backend.GuardVTEP }, nil, `ip saddr @vteps4 accept comment "from a host with a lease"`},
		{"guard off", func(o *kernel.Options) { o.Guard = backend.GuardOff }, nil, `@th,96,24 0x1 ip daddr @outer4 notrack`},
		{"no masquerade, no antispoof", func(o *kernel.Options) { o.Masquerade, o.AntiSpoof = false, false }, nil, `masquerade no antispoof no`},
		{"untracked", func(o *kernel.Options) { o.Untracked = true }, nil, `ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 notrack comment "inside the network"`},
		{"untracked, a network of no whole bytes", func(o *kernel.Options) { o.Untracked = true }, func(s *subnet.Snapshot) { s.Config.IPv4.Network = netip.MustParsePrefix("10.0.0.0/12") },
			`ip saddr 10.0.0.0/12 ip daddr 10.0.0.0/12 notrack`},
		{"no bridge", func(o *kernel.Options) { o.Bridge = "" }, nil, `ip6 saddr @own6 @th,96,24 0x1 counter name "pod_vxlan" drop`},
		{"no bridge and nothing at all", func(o *kernel.Options) { o.Bridge, o.Guard, o.Masquerade = "", backend.GuardOff, false }, nil, "bridge none"},
		{"everything excluded", func(o *kernel.Options) {
			o.Exclude = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}, nil, "elements = { 0.0.0.0/0 }"},
		{"the last addresses excluded", func(o *kernel.Options) {
			o.Exclude = []netip.Prefix{netip.MustParsePrefix("255.255.255.0/24"), netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("ff00::/8")}
		}, nil, "elements = { 0.0.0.0/8, 255.255.255.0/24 }"},
		{"neighbouring prefixes excluded", func(o *kernel.Options) {
			o.Exclude = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25"), netip.MustParsePrefix("198.51.100.128/25"), netip.MustParsePrefix("198.51.101.0/24")}
		}, nil, "elements = { 198.51.100.0/25, 198.51.100.128/25,"},
		{"a high port and VNI", nil, func(s *subnet.Snapshot) { s.Config.Backend.VNI, s.Config.Backend.Port = 1<<24-1, 65535 },
			"udp masquerade to :1024-65534 fully-random"},
		{"a port among those of masquerade", nil, func(s *subnet.Snapshot) { s.Config.Backend.Port = 10000 },
			"udp masquerade to :1024-9999 fully-random"},
		{"subnets of an odd length", nil, func(s *subnet.Snapshot) { s.Config.IPv4.SubnetLen = 23 }, `192.0.2.8 . 0xa052300-0xa0523ff comment "10.5.35.0/24"`},
		{"host-gw", nil, func(s *subnet.Snapshot) { s.Config.Backend.Type = subnet.BackendHostGW }, "vni 0 port 0"},
		{"IPv4 alone", nil, func(s *subnet.Snapshot) {
			s.Config.IPv6 = subnet.Pool{}
			for i := range s.Leases {
				s.Leases[i].Subnet6 = netip.Prefix{}
			}
		}, `ether type ip6 drop comment "the network has no IPv6"`},
		{"IPv6 alone", nil, func(s *subnet.Snapshot) {
			s.Config.IPv4 = subnet.Pool{}
			for i := range s.Leases {
				s.Leases[i].Subnet = netip.Prefix{}
			}
		}, "@th,224,16 0x86dd ip saddr . @th,304,128 @peers6 accept"},
		{"over IPv6", func(o *kernel.Options) { o.Choice.Ifaces = []string{"2001:db8:7::7"} }, six,
			"@th,224,16 0x800 ip6 saddr . @th,336,32 @peers4 accept"},
		{"over IPv6, guard vtep", func(o *kernel.Options) {
			o.Choice.Ifaces, o.Guard = []string{"2001:db8:7::7"}, backend.GuardVTEP
		}, six, "ip6 saddr @vteps6 accept"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			network := backendtest.Network(t)
			if c.network != nil {
				c.network(&network)
			}
			k := openWith(t, with(c.options))
			pass(t, k, network)
			text := ruleset(t)
			if !strings.Contains(text, c.prints) {
				t.Errorf("nft prints no %q in\n%s", c.prints, text)
			}
			loadAgain(t, k, network, text)
		})
	}
}
