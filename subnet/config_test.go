package subnet_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

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

// configText spells a configuration as the tables below do.
func configText(c subnet.Config) string {
	var b strings.Builder
	for _, p := range c.Pools() {
		fmt.Fprintf(&b, "%s by /%d from %s to %s; ", p.Network, p.SubnetLen, p.Min, p.Max)
	}
	fmt.Fprintf(&b, "%s vni %d port %d mtu %d", c.Backend.Type, c.Backend.VNI, c.Backend.Port, c.Backend.MTU)
	if c.Backend.DirectRouting {
		b.WriteString(" direct")
	}
	return b.String()
}

func TestParseConfigTakes(t *testing.T) {
	const preset = "vxlan vni 1 port 8472 mtu 0"
	for _, c := range []struct{ claim, text, want string }{
		{"the shortest: all else is flannel's default",
			`{"Network": "10.5.0.0/16"}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; " + preset},
		{"a large network: /24 still",
			`{"Network": "10.0.0.0/8"}`,
			"10.0.0.0/8 by /24 from 10.0.1.0 to 10.255.255.0; " + preset},
		{"the smallest network that /24 divides by four",
			`{"Network": "10.4.0.0/22"}`,
			"10.4.0.0/22 by /24 from 10.4.1.0 to 10.4.3.0; " + preset},
		{"a small network: a quarter for each host",
			`{"Network": "10.5.0.0/23"}`,
			"10.5.0.0/23 by /25 from 10.5.0.128 to 10.5.1.128; " + preset},
		{"the smallest network",
			`{"Network": "10.5.0.0/28"}`,
			"10.5.0.0/28 by /30 from 10.5.0.4 to 10.5.0.12; " + preset},
		{"bounds of the subnets",
			`{"Network": "10.5.0.0/16", "SubnetLen": 20, "SubnetMin": "10.5.0.0", "SubnetMax": "10.5.16.0"}`,
			"10.5.0.0/16 by /20 from 10.5.0.0 to 10.5.16.0; " + preset},
		{"one subnet only",
			`{"Network": "10.5.0.0/16", "SubnetMin": "10.5.7.0", "SubnetMax": "10.5.7.0"}`,
			"10.5.0.0/16 by /24 from 10.5.7.0 to 10.5.7.0; " + preset},
		{"as many subnets as can be numbered",
			`{"Network": "96.0.0.0/6", "SubnetLen": 30}`,
			"96.0.0.0/6 by /30 from 96.0.0.4 to 99.255.255.252; " + preset},
		{"a backend in full",
			`{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777215, "Port": 65535, "MTU": 9000, "DirectRouting": true}}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; vxlan vni 16777215 port 65535 mtu 9000 direct"},
		{"a backend at its lower bounds, its type in capitals",
			`{"Network": "10.5.0.0/16", "Backend": {"Type": "VXLAN", "VNI": 1, "Port": 1, "MTU": 1350}}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; vxlan vni 1 port 1 mtu 1350"},
		{"keys it does not know",
			`{"Network": "10.5.0.0/16", "EnableNFTables": true, "Colour": ["red"], "Backend": {"Type": "vxlan", "GBP": true, "MacPrefix": "0E-2A"}}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; " + preset},
		{"null for what is absent",
			`{"Network": "10.5.0.0/16", "SubnetMin": null, "EnableIPv4": null, "Backend": {"VNI": null, "Port": null}}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; " + preset},
		{"a line feed at the end", "{\"Network\": \"10.5.0.0/16\"}\n",
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; " + preset},
		{"both families",
			`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; fd00:5::/48 by /64 from fd00:5:0:1:: to fd00:5:0:ffff::; " + preset},
		{"IPv6 alone",
			`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`,
			"fd00:5::/48 by /64 from fd00:5:0:1:: to fd00:5:0:ffff::; " + preset},
		{"a small IPv6 network, with bounds",
			`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/120", "IPv6SubnetMin": "fd00::40", "IPv6SubnetMax": "fd00::80"}`,
			"fd00::/120 by /122 from fd00::40 to fd00::80; " + preset},
		{"an IPv6 network with a length of its own",
			`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/32", "IPv6SubnetLen": 56}`,
			"fd00:5::/32 by /56 from fd00:5:0:100:: to fd00:5:ffff:ff00::; " + preset},
		{"an IPv6 network that is not enabled: it is off",
			`{"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"}`,
			"10.5.0.0/16 by /24 from 10.5.1.0 to 10.5.255.0; " + preset},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if got := configText(parse(t, c.text)); got != c.want {
				t.Errorf("%s\n got %s\nwant %s", c.text, got, c.want)
			}
		})
	}
}

func TestParseConfigRefusesAndNamesKeyValueAndWhatIsAllowed(t *testing.T) {
	six := func(keys string) string {
		return `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", ` + keys + `}`
	}
	four := func(keys string) string { return `{"Network": "10.5.0.0/16", ` + keys + `}` }
	backend := func(keys string) string { return four(`"Backend": {` + keys + `}`) }
	for _, c := range []struct{ text, want string }{
		{`{}`, "Network is missing: give an IPv4 prefix such as 10.5.0.0/16"},
		{`null`, "Network is missing: give an IPv4 prefix such as 10.5.0.0/16"},
		{`{"Network": "10.5.0.0"}`, "Network: 10.5.0.0: allowed is an IPv4 prefix such as 10.5.0.0/16"},
		{`{"Network": "fd00:5::/48"}`, "Network: fd00:5::/48: allowed is an IPv4 prefix such as 10.5.0.0/16"},
		{`{"Network": "0.0.0.0/0"}`, "Network: 0.0.0.0/0: allowed is an IPv4 prefix such as 10.5.0.0/16"},
		{`{"Network": "10.5.1.0/16"}`, "Network: 10.5.1.0/16: allowed is a prefix without host bits: 10.5.0.0/16"},
		{`{"Network": "127.5.0.0/16"}`, "Network: 127.5.0.0/16: allowed is unicast addresses, not 127.0.0.0/8 (loopback)"},
		{`{"Network": "169.0.0.0/8"}`, "Network: 169.0.0.0/8: allowed is unicast addresses, not 169.254.0.0/16 (link-local)"},
		{`{"Network": "225.0.0.0/16"}`, "Network: 225.0.0.0/16: allowed is unicast addresses, not 224.0.0.0/4 (multicast)"},
		{`{"Network": "10.5.0.0/29"}`, "Network: 10.5.0.0/29: allowed is /28 or larger"},
		{four(`"SubnetLen": 17`), "SubnetLen: 17: allowed is 18 to 30 for 10.5.0.0/16"},
		{four(`"SubnetLen": 31`), "SubnetLen: 31: allowed is 18 to 30 for 10.5.0.0/16"},
		{four(`"SubnetLen": -1`), "SubnetLen: -1: allowed is 18 to 30 for 10.5.0.0/16"},
		{`{"Network": "96.0.0.0/5", "SubnetLen": 30}`, "SubnetLen: 30: allowed is 7 to 29 for 96.0.0.0/5"},
		{four(`"SubnetMin": "10.6.0.0"`), "SubnetMin: 10.6.0.0: allowed is the first address of a /24 inside 10.5.0.0/16, such as 10.5.1.0"},
		{four(`"SubnetMin": "10.5.2.1"`), "SubnetMin: 10.5.2.1: allowed is the first address of a /24 inside 10.5.0.0/16, such as 10.5.1.0"},
		{four(`"SubnetMax": "ten"`), "SubnetMax: ten: allowed is the first address of a /24 inside 10.5.0.0/16, such as 10.5.255.0"},
		{four(`"SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"`), "SubnetMax: 10.5.8.0: allowed is an address not below SubnetMin 10.5.9.0"},
		{`{"EnableIPv4": false}`, "EnableIPv4: false: allowed is true, unless EnableIPv6 is true"},
		{`{"EnableIPv4": false, "EnableIPv6": true}`, "IPv6Network is missing: give an IPv6 prefix such as fd00:5::/48"},
		{`{"Network": "10.5.0.0/16", "EnableIPv6": true}`, "IPv6Network is missing: give an IPv6 prefix such as fd00:5::/48"},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "ff00::/48"}`, "IPv6Network: ff00::/48: allowed is unicast addresses, not ff00::/8 (multicast)"},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fe80::/48"}`, "IPv6Network: fe80::/48: allowed is unicast addresses, not fe80::/10 (link-local)"},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "::ffff:10.5.0.0/112"}`, "IPv6Network: ::ffff:10.5.0.0/112: allowed is unicast addresses, not ::/8 (reserved)"},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/125"}`, "IPv6Network: fd00::/125: allowed is /124 or larger"},
		{six(`"IPv6SubnetLen": 73`), "IPv6SubnetLen: 73: allowed is 50 to 72 for fd00:5::/48"},
		{six(`"IPv6SubnetMin": "fd00:5::1"`), "IPv6SubnetMin: fd00:5::1: allowed is the first address of a /64 inside fd00:5::/48, such as fd00:5:0:1::"},
		{six(`"IPv6SubnetMax": "fd00:5::"`), "IPv6SubnetMax: fd00:5::: allowed is an address not below IPv6SubnetMin fd00:5:0:1::"},
		{backend(`"Type": "udp"`), `Backend.Type: udp: allowed is "vxlan", "host-gw" or "alloc"`},
		{backend(`"VNI": 0`), "Backend.VNI: 0: allowed is 1 to 16777215"},
		{backend(`"VNI": 16777216`), "Backend.VNI: 16777216: allowed is 1 to 16777215"},
		{backend(`"Port": 0`), "Backend.Port: 0: allowed is 1 to 65535"},
		{backend(`"Port": 65536`), "Backend.Port: 65536: allowed is 1 to 65535"},
		{backend(`"MTU": 1349`), "Backend.MTU: 1349: allowed is 0 (the uplink's) or 1350 to 65535"},
		{backend(`"MTU": 65536`), "Backend.MTU: 65536: allowed is 0 (the uplink's) or 1350 to 65535"},
	} {
		t.Run(c.text, func(t *testing.T) {
			want := "network config: " + c.want
			if _, err := subnet.ParseConfig([]byte(c.text)); err == nil || err.Error() != want {
				t.Errorf("\n got %v\nwant %s", err, want)
			}
		})
	}
}

// What encoding/json says is its own business: these only have to name the place.
func TestParseConfigRefusesWhatIsNotOneJSONObject(t *testing.T) {
	for _, c := range []struct {
		claim, text string
		want        []string
	}{
		{"nothing", "", []string{"not JSON"}},
		{"half an object", `{"Network": "10.5`, []string{"not JSON"}},
		{"no JSON", `Network = 10.5.0.0/16`, []string{"not JSON at byte 1"}},
		{"a number in quotes", `{"SubnetLen": "24"}`, []string{"SubnetLen", "string", "whole number"}},
		{"half a bit", `{"SubnetLen": 24.5}`, []string{"SubnetLen", "24.5", "whole number"}},
		{"a number in quotes, deeper", `{"Backend": {"VNI": "1"}}`, []string{"Backend.VNI", "string", "whole number"}},
		{"a list", `[{"Network": "10.5.0.0/16"}]`, []string{"array", "object"}},
		{"a bare string", `"10.5.0.0/16"`, []string{"string", "object"}},
		{"two objects", `{"Network": "10.5.0.0/16"} {}`, []string{"after the JSON object"}},
		{"words after it", `{"Network": "10.5.0.0/16"} and more`, []string{"after the JSON object"}},
		{"a brace too many", `{"Network": "10.5.0.0/16"}}`, []string{"after the JSON object"}},
		{"a bracket too many", `{"Network": "10.5.0.0/16"}]`, []string{"after the JSON object"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			config, err := subnet.ParseConfig([]byte(c.text))
			if err == nil {
				t.Fatalf("%s\n got %s\nwant an error with %q", c.text, configText(config), c.want)
			}
			for _, word := range c.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s\n got %v\nwant %q in it", c.text, err, word)
				}
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{
		`{"Network": "10.5.0.0/16", "SubnetLen": 24, "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.9.0", "Backend": {"Type": "vxlan", "VNI": 1}}`,
		`{"Network": "10.5.0.0/28", "EnableIPv6": true, "IPv6Network": "fd00:5::/104", "IPv6SubnetLen": 126}`,
		`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/40", "IPv6SubnetMin": "fd00:5:0:7::"}`,
		`{"Network": "96.0.0.0/6", "SubnetLen": 30, "Backend": {"Port": 4789, "MTU": 1350, "DirectRouting": true}}`,
		`{"Network": "::ffff:10.5.0.0/112", "SubnetMin": "fe80::1%eth0"}`,
		`{"Network": "10.5.0.0/16"}}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := subnet.ParseConfig(text)
		if err != nil {
			return
		}
		if len(c.Pools()) == 0 {
			t.Fatalf("%q: no family at all", text)
		}
		for _, p := range c.Pools() {
			low, high := netip.PrefixFrom(p.Min, p.SubnetLen), netip.PrefixFrom(p.Max, p.SubnetLen)
			if p.Max.Less(p.Min) || !p.Contains(low) || !p.Contains(high) || low != low.Masked() || high != high.Masked() {
				t.Errorf("%q: from %s to %s does not lie inside", text, low, high)
			}
			for _, s := range []netip.Prefix{low, high} {
				if index, ok := p.Index(s); !ok || p.At(index) != s {
					t.Errorf("%q: %s has index %d, %t: that is %s", text, s, index, ok, p.At(index))
				}
			}
		}
	})
}
