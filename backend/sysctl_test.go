package backend_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// knobsOf lists the knobs of a plan as they are made.
func knobsOf(h backend.Host, s subnet.Snapshot) []string {
	var all []string
	for _, e := range backend.Plan(h, s).Entries() {
		if k, ok := e.(backend.Sysctl); ok {
			all = append(all, k.String())
		}
	}
	return all
}

// TestTheUplinkGoesOnTakingAdvertisements: a host that forwards IPv6 takes them only with accept_ra 2, and one that took
// none before is not made to.
func TestTheUplinkGoesOnTakingAdvertisements(t *testing.T) {
	dualStack := three(t)
	dualStack.Config = parse(t, dual)
	dualStack.Leases = []subnet.Lease{lease("h7", "192.0.2.7", "10.5.34.0/24", "fd00:5:0:22::/64")}
	const knob = "net/ipv6/conf/wlan0/accept_ra"
	for _, c := range []struct {
		claim, acceptRA string
		ipv6            bool
		network         subnet.Snapshot
		want            string
	}{
		{"on", "1", true, dualStack, knob + " = 2"},
		{"already on while forwarding", "2", true, dualStack, knob + " = 2"},
		{"off", "0", true, dualStack, ""},
		{"the uplink has no IPv6", "", true, dualStack, ""},
		{"the network has no IPv6", "1", true, three(t), ""},
		{"the kernel has no IPv6", "1", false, dualStack, ""},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h := host()
			h.Uplink.Name, h.Uplink.AcceptRA, h.IPv6 = "wlan0", c.acceptRA, c.ipv6
			all := knobsOf(h, c.network)
			i := slices.IndexFunc(all, func(k string) bool { return strings.HasPrefix(k, knob) })
			if i < 0 != (c.want == "") || i >= 0 && all[i] != c.want {
				t.Fatalf("got %q, want %q", all, c.want)
			}
			// When forwarding goes on, on any device, the kernel drops default routes that it learned on devices without
			// 2 (rt6_purge_dflt_routers): the host would be without one until the next advertisement.
			on := slices.IndexFunc(all, func(k string) bool {
				return strings.HasPrefix(k, "net/ipv6/") && strings.HasSuffix(k, "/forwarding = 1")
			})
			if c.want != "" && on < i {
				t.Errorf("forwarding goes on before advertisements are kept:\n%s", strings.Join(all, "\n"))
			}
		})
	}
}

func TestForwardingGoesOnForEachFamilyOfTheNetwork(t *testing.T) {
	six := subnet.Snapshot{
		Config: parse(t, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`),
		Leases: []subnet.Lease{lease("h7", "192.0.2.7", "fd00:5:0:22::/64")},
	}
	for _, c := range []struct {
		claim   string
		network subnet.Snapshot
		on, off string
	}{
		{"IPv4", three(t), "net/ipv4/ip_forward = 1", "net/ipv6/conf/all/forwarding = 1"},
		{"IPv6", six, "net/ipv6/conf/all/forwarding = 1", "net/ipv4/ip_forward = 1"},
	} {
		all := knobsOf(host(), c.network)
		if !slices.Contains(all, c.on) || slices.Contains(all, c.off) {
			t.Errorf("%s: %q, want %s and not %s", c.claim, all, c.on, c.off)
		}
	}
}
