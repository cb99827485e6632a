package runtimes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// podmanNetwork is the overlay of these tests, podmanDual the one with both families.
const (
	podmanNetwork = `{"Network": "10.5.0.0/16"}`
	podmanDual    = `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`
)

// Debian's plugins as they stand behind ours. Podman passes no rates, so those are in the configuration.
const (
	portmap   = `{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`
	bandwidth = `{"type":"bandwidth","ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000}`
	tuning    = `{"type":"tuning","capabilities":{"mac":true},"sysctl":{"net.core.somaxconn":"500"}}`
	firewall  = `{"type":"firewall","backend":"iptables","ingressPolicy":"same-bridge"}`
)

func TestPodmanContainersOfTwoHostsSeeEachOthersAddresses(t *testing.T) {
	hosts := podmans(t, "meet", podmanNetwork, 2)
	var addrs []netip.Addr
	for _, p := range hosts {
		p.run("web")
		addrs = append(addrs, p.addrs("web", "eth0")...)
	}
	if len(addrs) != 2 {
		t.Fatalf("the containers have %v", addrs)
	}
	for i, p := range hosts {
		p.talk("web", addrs[i], addrs[1-i])
	}
}

func TestPodmanContainersOfTwoHostsTalkInBothFamilies(t *testing.T) {
	hosts := podmans(t, "dual", podmanDual, 2)
	hosts[0].run("web")
	ours := hosts[0].addrs("web", "eth0")
	subnets, err := hosts[1].Subnets()
	check(t, err)
	var asked []netip.Addr
	options := "overlay:mac=02:00:5e:10:00:07"
	for _, s := range subnets {
		asked = append(asked, subnet.Addr(s, 77))
		options += ",ip=" + asked[len(asked)-1].String()
	}
	hosts[1].run("web", "--network", options)
	theirs := hosts[1].addrs("web", "eth0")
	if len(ours) != 2 || ours[0].Is4() == ours[1].Is4() || !slices.Equal(theirs, asked) {
		t.Fatalf("one container has %v, want one of each family; the other %v, want %v", ours, theirs, asked)
	}
	if got := hosts[1].mac("web"); got != "02:00:5e:10:00:07" {
		t.Errorf("the MAC is %s", got)
	}
	for i := range ours {
		hosts[0].talk("web", ours[i], theirs[i])
		hosts[1].talk("web", theirs[i], ours[i])
	}
}

func TestPodmanContainersHaveWhatIsAskedFor(t *testing.T) {
	p := podmans(t, "asked", podmanNetwork, 1)[0]
	subnets, err := p.Subnets()
	check(t, err)
	free, another := subnet.Addr(subnets[0], 77), netip.MustParseAddr("10.99.0.7")
	before := p.hold()
	id := p.run("first", "--ip", free.String(), "--mac-address", "02:00:5e:10:00:07")
	if got := p.addrs("first", "eth0"); !slices.Equal(got, []netip.Addr{free}) {
		t.Errorf("it has %v, want %s", got, free)
	}
	if got := p.mac("first"); got != "02:00:5e:10:00:07" {
		t.Errorf("its MAC is %s", got)
	}
	for name, test := range map[string]struct {
		ip   netip.Addr
		want string
	}{
		"taken":        {free, fmt.Sprintf("address %s is taken by overlay/%s/eth0", free, id)},
		"out of range": {another, fmt.Sprintf("%s is out of range: this host has %v", another, subnets)},
		"the gateway":  {subnet.Addr(subnets[0], 1), "is not a pod's"},
	} {
		t.Run("not an address that is "+name, func(t *testing.T) {
			p := p.in(t)
			text, err := p.tryPodman("run", p.web("refused", "--ip", test.ip.String())...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("podman run: %s, %v; want an error that says: %s", text, err, test.want)
			}
			p.remove("refused")
		})
	}
	p.remove("first")
	p.back(before)
	p.run("next", "--ip", free.String()) // it is free again
}

func TestPodmanPublishesPortsUntilTheContainerIsRemoved(t *testing.T) {
	hosts := podmans(t, "ports", podmanNetwork, 2, portmap)
	p, other := hosts[0], hosts[1]
	id := p.run("web", "-p", "8080:80")
	public := p.Addr + ":8080"
	reach := func() map[string]error {
		all := map[string]error{}
		seen, err := other.who(public)
		if err == nil && seen.String() != other.Addr {
			err = fmt.Errorf("another host is seen as %s, want %s", seen, other.Addr)
		}
		all["another host"] = err
		_, all["the host itself"] = p.who(public)
		_, all["the host's loopback"] = p.who("127.0.0.1:8080")
		return all
	}
	for who, err := range reach() {
		if err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if text, err := p.tryPodman("exec", "web", "sh", "-c", asks(public)); err != nil {
		t.Errorf("the container itself: %s %v", text, err)
	}
	if !names(p.hold(), "iptables-save", id) {
		t.Error("no rule names the container")
	}
	p.remove("web")
	for who, err := range reach() {
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s after the container's removal: %v, want a refused connection", who, err)
		}
	}
	if names(p.hold(), "iptables-save", id) {
		t.Error("a rule still names the container")
	}
}

func TestPodmanContainerInTwoNetworksHasTwoAddresses(t *testing.T) {
	p := podmans(t, "two", podmanNetwork, 1)[0]
	before := p.hold()
	p.run("client")
	client := p.addrs("client", "eth0")[0]
	id := p.run("both", "--network", "overlay", "--network", "second")
	addrs := slices.Concat(p.addrs("both", "eth0"), p.addrs("both", "eth1"))
	if len(addrs) != 2 || addrs[0] == addrs[1] {
		t.Fatalf("eth0 and eth1 have %v", addrs)
	}
	now := p.hold()
	for i, a := range addrs {
		p.podman("exec", "both", "ping", "-c", "1", "-W", "5", "-I", fmt.Sprintf("eth%d", i), client.String())
		if !names(now, "link", subnet.AltName(a)) {
			t.Errorf("no link holds %s:\n%s", a, strings.Join(now, "\n"))
		}
	}
	for _, network := range []string{"overlay", "second"} {
		if !names(now, "cache", network+"-"+id) {
			t.Errorf("nothing is remembered of %s:\n%s", network, strings.Join(now, "\n"))
		}
	}
	p.remove("both", "client")
	p.back(before)
}

// Both networks are on one bridge, and what is asked for one address may be answered by the other's interface.
func TestPodmanContainerInTwoNetworksIsReachedByBothAddresses(t *testing.T) {
	p := podmans(t, "sources", podmanNetwork, 1)[0]
	before := p.hold()
	p.run("client")
	p.run("both", "--network", "overlay", "--network", "second")
	own := p.addrs("client", "eth0")[0]
	for _, device := range []string{"eth0", "eth1"} {
		p.talk("client", own, p.addrs("both", device)[0])
	}
	p.remove("both", "client")
	p.back(before)
}

// ends are ways in which a container comes to its end, before it is removed.
var ends = map[string]struct {
	flags []string
	end   func(p *podmanHost)
}{
	"while it runs":         {},
	"after podman stop":     {end: func(p *podmanHost) { p.podman("stop", "-t", "0", "web") }},
	"after SIGKILL":         {end: func(p *podmanHost) { p.kill("{{.State.Pid}}") }},
	"after SIGKILL, --rm":   {flags: []string{"--rm"}, end: func(p *podmanHost) { p.kill("{{.State.Pid}}") }},
	"with conmon killed":    {end: func(p *podmanHost) { p.kill("{{.State.ConmonPid}}") }},
	"with all of it killed": {end: func(p *podmanHost) { p.kill("{{.State.ConmonPid}} {{.State.Pid}}") }},
}

func TestPodmanLeavesNothingOfARemovedContainer(t *testing.T) {
	p := podmans(t, "removed", podmanDual, 1, portmap, firewall)[0]
	p.run("first", "-p", "8080:80") // chains that are made once stay
	p.remove("first")
	before := p.hold()
	for name, test := range ends {
		t.Run(name, func(t *testing.T) {
			p := p.in(t)
			id := p.run("web", append(test.flags, "-p", "8080:80")...)
			addrs, now := p.addrs("web", "eth0"), p.hold()
			for _, want := range [][2]string{
				{"link", "overlay/" + id + "/eth0"}, {"link", subnet.AltName(addrs[0])}, {"link", subnet.AltName(addrs[1])}, {"cache", id},
				{"namespace", "netns-"}, {"iptables-save", id}, {"iptables-save", addrs[0].String()}, {"ip6tables-save", addrs[1].String()},
			} {
				if !names(now, want[0], want[1]) {
					t.Errorf("no %s with %s in\n%s", want[0], want[1], strings.Join(now, "\n"))
				}
			}
			if test.end != nil {
				test.end(p)
			}
			if !slices.Contains(test.flags, "--rm") {
				p.remove("web")
			}
			p.back(before)
		})
	}
}

func TestPodmanContainersHaveAllOfDebiansPluginsBehindOurs(t *testing.T) {
	hosts := podmans(t, "chain", podmanNetwork, 2, portmap, bandwidth, tuning, firewall)
	p, other := hosts[0], hosts[1]
	p.run("first", "-p", "8080:80")
	p.remove("first")
	before := p.hold()
	id := p.run("web", "-p", "8080:80", "--mac-address", "02:00:5e:10:00:07")
	other.run("web")
	own, to := p.addrs("web", "eth0")[0], other.addrs("web", "eth0")[0]
	p.talk("web", own, to)
	other.talk("web", to, own)
	if seen, err := other.who(p.Addr + ":8080"); err != nil || seen.String() != other.Addr {
		t.Errorf("the published port sees %s, %v", seen, err)
	}
	now := p.hold()
	for plugin, did := range map[string]bool{
		"portmap": names(now, "iptables-save", id), "firewall": names(now, "iptables-save", own.String()+"/32 "),
		"bandwidth": names(now, "link", " ifb "), "tuning": p.podman("exec", "web", "cat", "/proc/sys/net/core/somaxconn") == "500",
		"tuning's mac": p.mac("web") == "02:00:5e:10:00:07",
	} {
		if !did {
			t.Errorf("nothing is to be seen of %s", plugin)
		}
	}
	p.remove("web")
	p.back(before)
}

func TestPodmanContainerIsStoppedAndStarted(t *testing.T) {
	hosts := podmans(t, "again", podmanNetwork, 2)
	p, other := hosts[0], hosts[1]
	before := p.hold()
	other.run("web")
	to := other.addrs("web", "eth0")[0]
	p.podman("create", p.web("web")[1:]...)
	for range 2 {
		p.podman("start", "web")
		own := p.addrs("web", "eth0")[0]
		p.talk("web", own, to)
		other.talk("web", to, own)
		p.podman("stop", "-t", "0", "web")
		p.back(before)
	}
}

func TestPodmanRunsContainersWhileTheDaemonIsAway(t *testing.T) {
	hosts := podmans(t, "away", podmanNetwork, 2)
	p, other := hosts[0], hosts[1]
	other.run("web")
	to := other.addrs("web", "eth0")[0]
	before := p.hold()
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run("after "+signal.String(), func(t *testing.T) {
			p, other := p.in(t), other.in(t)
			check(t, p.Daemon().End(signal))
			p.run("early")
			own := p.addrs("early", "eth0")[0]
			p.talk("early", own, to)
			other.talk("web", to, own)
			p.run("gone")
			p.remove("gone")
			check(t, p.Start())
			check(t, p.Ready(1))
			p.talk("early", own, to)
			other.talk("web", to, own)
			p.remove("early")
			p.back(before)
		})
	}
}
