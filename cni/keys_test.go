package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestKeyBridge(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	h.node.Bridge = "" // overlayd --bridge none
	h.write(t)
	must(t, h.Do(func() error { return errors.Join(plant("br9"), withLink("br9", netlink.LinkSetUp)) }))
	c := h.add("c1", pod)
	h.refuse(t, c, types.ErrTryAgainLater, "--bridge none")
	c.conf = h.conf("1.0.0", "net", `,"bridge":"br9"`)
	r := h.attach(t, c)
	same(t, "interface 0", r.Interfaces[0].Name, "br9")
	if got := text(t, h.Netns); !strings.Contains(got, "master br9") {
		t.Errorf("the host is\n%s", got)
	}
}

func TestADDWaitsForABridgeThatIsDown(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	must(t, h.Do(func() error { return withLink(bridgeName, netlink.LinkSetDown) }))
	before := text(t, h.Netns)
	h.refuse(t, h.add("c1", pod), types.ErrTryAgainLater, "bridge ovl0 is down")
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, pod), "")
}

func TestKeyMTU(t *testing.T) {
	for size, want := range map[string]string{"0": "mtu 1430", "68": "mtu 68", "9000": "mtu 9000"} {
		h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
		c := h.add("c1", pod)
		c.conf = h.conf("1.0.0", "net", `,"mtu":`+size)
		h.do(t, c)
		for what, n := range map[string]*lab.Netns{"the pod": pod, "the host": h.Netns} {
			if got := text(t, n); !strings.Contains(got, " veth ") || !strings.Contains(got, want+" up") {
				t.Errorf("mtu %s: %s is\n%s", size, what, got)
			}
		}
	}
}

func TestKeyIsDefaultGateway(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
	h.node.Networks = []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/48")}
	h.write(t)
	c := h.add("c1", pod)
	c.conf = h.conf("1.0.0", "net", `,"isDefaultGateway":false`)
	r := h.attach(t, c)
	got := ""
	for _, route := range r.Routes {
		got += fmt.Sprintf("%s via %s\n", &route.Dst, route.GW)
	}
	same(t, "the routes", got, "10.5.0.0/16 via 10.5.1.1\nfd00:5::/48 via fd00:5:1::1\n")
	if got := text(t, pod); strings.Contains(got, "default") {
		t.Errorf("the pod is\n%s", got)
	}
}

func TestKeyHairpinMode(t *testing.T) {
	for value, want := range map[string]bool{"": true, `,"hairpinMode":true`: true, `,"hairpinMode":false`: false} {
		h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
		c := h.add("c1", pod)
		c.conf = h.conf("1.0.0", "net", value)
		h.do(t, c)
		if got := text(t, h.Netns); strings.Contains(got, "hairpin on") != want {
			t.Errorf("with %q the host is\n%s", value, got)
		}
	}
}

func TestKeyRoutes(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	c := h.add("c1", pod)
	c.conf = h.conf("1.1.0", "net", `,"routes":[{"dst":"192.0.2.0/24"},{"dst":"198.51.100.0/24","gw":"10.5.1.9","mtu":1200,"advmss":1100,"priority":77,"table":99}]`)
	r := h.attach(t, c)
	if len(r.Routes) != 3 || r.Routes[1].GW.String() != "10.5.1.1" || r.Routes[2].Priority != 77 {
		t.Errorf("the result has the routes %v", r.Routes)
	}
	out, err := pod.Output(nil, needed(t, "ip"), "route", "show", "table", "all")
	must(t, err)
	for _, want := range []string{"192.0.2.0/24 via 10.5.1.1 dev eth0", "198.51.100.0/24 via 10.5.1.9 dev eth0 table 99 metric 77 mtu 1200 advmss 1100"} {
		if !strings.Contains(out, want) {
			t.Errorf("the routes are\n%s\nwant %s", out, want)
		}
	}
	for _, bad := range []string{`[{}]`, `[null]`, `[{"gw":"10.5.1.1"}]`} {
		c.conf = h.conf("1.1.0", "net", `,"routes":`+bad)
		h.refuse(t, c, types.ErrInvalidNetworkConfig, "routes")
	}
}

// Router advertisements come from whoever is on the bridge: a pod believes none, with and without an IPv6 address of ours.
func TestNoPodBelievesRouterAdvertisements(t *testing.T) {
	for _, subnets := range [][]string{{"10.5.1.0/24"}, {"10.5.1.0/24", "fd00:5:1::/64"}} {
		h, pod := newHost(t, subnets...), newSpace(t)
		h.do(t, h.add("c1", pod))
		must(t, pod.Do(func() error {
			value, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra")
			same(t, "accept_ra", strings.TrimSpace(string(value)), "0")
			return err
		}))
	}
}

// TestIPv6IsOnlyWhereItIsNeeded: a link that has none does not tell all other pods of itself.
func TestIPv6IsOnlyWhereItIsNeeded(t *testing.T) {
	for _, c := range []struct {
		subnets []string
		want    string // addresses of eth0
	}{{[]string{"10.5.1.0/24"}, ""}, {[]string{"10.5.1.0/24", "fd00:5:1::/64"}, "fd00:5:1::"}, {[]string{"fd00:5:1::/64"}, "fd00:5:1::"}} {
		h, pod := newHost(t, c.subnets...), newSpace(t)
		h.do(t, h.add("c1", pod))
		inside, err := pod.Output(nil, needed(t, "ip"), "-6", "addr", "show", "dev", "eth0")
		must(t, err)
		if !strings.Contains(inside, c.want) || c.want == "" && inside != "" {
			t.Errorf("%v: eth0 has %q", c.subnets, inside)
		}
		outside, err := h.Output(nil, needed(t, "ip"), "-6", "addr", "show", "dev", linkOf("net", "c1", "eth0"))
		must(t, err)
		same(t, "the host's side", outside, "")
	}
}

// TestAPodWithoutIPv6InANetworkThatHasItMayGetIt from somebody else, such as a plugin behind ours.
func TestAPodWithoutIPv6InANetworkThatHasItMayGetIt(t *testing.T) {
	theirs(t, "static")
	h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
	c := h.add("c1", pod)
	c.conf = h.conf("1.0.0", "net", `,"ipam":{"type":"static","addresses":[{"address":"10.5.1.40/24"}]}`)
	h.do(t, c.with("CNI_PATH", debian))
	_, err := pod.Output(nil, needed(t, "ip"), "addr", "add", "fd00:5:1::40/64", "dev", "eth0", "nodad")
	must(t, err)
}

// reaches says whether a first datagram is answered at once.
func reaches(t *testing.T, from *lab.Netns, to netip.Addr) bool {
	t.Helper()
	answer, err := from.Ping(to)
	return err == nil && answer.Took < time.Second
}

func TestKeyPortIsolation(t *testing.T) {
	t.Parallel()
	h, one, two, open := newHost(t, "10.5.1.0/24"), newSpace(t), newSpace(t), newSpace(t)
	attach := func(name string, pod *lab.Netns, more string) netip.Addr {
		c := h.add(name, pod)
		c.conf = h.conf("1.0.0", "net", more)
		must(t, pod.Echo())
		return addrs(h.attach(t, c))[0]
	}
	must(t, h.Echo())
	first, second := attach("c1", one, `,"portIsolation":true`), attach("c2", two, `,"portIsolation":true`)
	third := attach("c3", open, "")
	for name, test := range map[string]struct {
		from *lab.Netns
		to   netip.Addr
		want bool
	}{
		"isolated to isolated":        {one, second, false},
		"and back":                    {two, first, false},
		"isolated to the gateway":     {one, h.node.Gateways[0], true},
		"isolated to one that is not": {one, third, true},
		"the host to isolated":        {h.Netns, first, true},
	} {
		if got := reaches(t, test.from, test.to); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
