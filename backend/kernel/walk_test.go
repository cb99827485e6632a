package kernel_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/e2e/lab"
)

// somebodys are rules in a base chain, and at which hook packets of ours are dropped there for certain.
type somebodys struct{ claim, hook, policy, rules, want string }

func forwardRules() []somebodys {
	return []somebodys{
		{"nothing accepted", "forward", "drop", "", "forward"},
		{"one way", "forward", "drop", `iifname "ovl0" accept;`, "forward"},
		{"the other way", "forward", "drop", `oifname "ovl0" counter accept;`, "forward"},
		{"both ways", "forward", "drop", `iifname "ovl0" counter accept; oifname "ovl0" accept comment "pods";`, ""},
		{"both ways for another device", "forward", "drop", `iifname "ovl1" accept; oifname "ovl1" accept;`, "forward"},
		{"not from our device", "forward", "drop", `iifname != "ovl0" accept; oifname "ovl0" accept;`, "forward"},
		{"both ways for some packets", "forward", "drop", `iifname "ovl0" tcp dport 80 accept; oifname "ovl0" accept;`, "forward"},
		{"both ways, but dropped", "forward", "drop", `iifname "ovl0" drop; oifname "ovl0" drop;`, "forward"},
		{"both ways, but by number", "forward", "drop", `meta iif 1 accept; meta oif 1 accept;`, "forward"},
		{"connections that exist", "forward", "drop", `ct state { established, related } accept; ct state established,related accept;`, "forward"},
		{"by a map of states", "forward", "drop", `ct state vmap { established : accept, new : accept };`, ""},
		{"by a map of states that leaves it out", "forward", "drop", `ct state vmap { established : accept, invalid : drop };`, "forward"},
		{"by a map of devices", "forward", "drop", `iifname vmap { "ovl0" : accept, "overlay.1" : accept };`, ""},
		{"dropped by a map", "forward", "accept", `iifname vmap { "lo" : accept, "ovl0" : drop };`, "forward"},
		{"the pool", "forward", "drop", `meta nfproto ipv6 accept; ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 accept;`, ""},
		{"the pool in a set", "forward", "drop", `meta nfproto ipv6 accept; ip saddr { 10.4.0.0/16, 10.5.0.0/16, 10.7.0.0-10.9.0.0 } accept;`, ""},
		{"another network", "forward", "drop", `ip saddr 10.6.0.0/16 accept;`, "forward"},
		{"other networks in a set", "forward", "drop", `ip saddr { 10.4.0.0/16, 10.6.0.0/16 } accept;`, "forward"},
		{"other networks in a set, inverted", "forward", "drop", `meta nfproto ipv6 accept; ip saddr != { 10.4.0.0/16, 10.6.0.0/16 } accept;`, ""},
		{"all devices of a name", "forward", "drop", `iifname "ov*" accept;`, ""},
		{"all of TCP", "forward", "drop", `meta l4proto tcp accept;`, ""},
		{"a mark that we do not know", "forward", "drop", `meta mark 7 accept;`, ""},
		{"at a rate", "forward", "drop", `limit rate 5/second accept;`, ""},
		{"an accepting chain that rejects at its end", "forward", "accept", `ct state established accept; reject with icmpx type admin-prohibited;`, "forward"},
		{"an accepting chain that drops first", "forward", "accept", `counter log prefix "no: " drop; accept;`, "forward"},
		{"an accepting chain that drops some", "forward", "accept", `ip saddr 203.0.113.0/24 drop; meta mark 7 drop; tcp dport 22 drop;`, ""},
		{"ports above a number in a set", "forward", "drop", `tcp dport { 80, 443, 1024-65535 } accept;`, ""},
		{"ports above a number in a map", "forward", "drop", `tcp dport vmap { 1024-65535 : accept };`, ""},
		{"even ports", "forward", "drop", `tcp dport & 1 == 0 accept;`, ""},
		{"one port in a set", "forward", "drop", `tcp dport { 80, 443 } accept;`, "forward"},
		{"ports below a number dropped", "forward", "accept", `tcp dport < 1024 drop;`, ""},
		{"a range of ports dropped", "forward", "accept", `tcp dport 1-1023 drop; tcp dport { 1-5, 7 } drop;`, ""},
		{"what is not tracked let through, and pods are", "forward", "drop", `ct state untracked accept;`, "forward"},
		{"some other kernel's devices", "forward", "drop", `iifname . oifname { "ovl0" . "overlay.1", "overlay.1" . "ovl0" } accept;`, ""},
	}
}

// hostRules are about VXLAN from and to peers.
func hostRules() []somebodys {
	return []somebodys{
		{"what is for this host, which is looked up", "input", "drop", `fib daddr type local accept;`, ""},
		{"what is for this host, after something known", "input", "drop", `iifname "eth0" fib daddr type local accept; meta l4proto udp fib daddr type local accept;`, ""},
		{"marked as a connection", "input", "drop", `udp dport 8472 ct mark set 1 accept;`, ""},
		{"our port for some socket", "input", "drop", `udp dport 8000-9000 socket mark 0 accept;`, ""},
		{"peers by a socket", "input", "drop", `ip saddr { 192.0.2.8, 192.0.2.9 } socket mark 0 accept;`, ""},
		{"devices by their numbers", "input", "drop", `meta iif 1-10000 accept;`, ""},
		{"devices below a number", "input", "drop", `meta iif < 10000 accept;`, ""},
		{"devices in a range of numbers", "input", "drop", `meta iif { 1-10000 } accept;`, ""},
		{"states in a range", "input", "drop", `ct state 32-128 accept;`, ""},
		{"on behind a map", "input", "drop", `ip saddr vmap { 192.0.2.8 : continue } accept;`, ""},
		{"peers that a rule remembers", "input", "drop", `add @seen { ip saddr }; ip saddr @seen accept;`, ""},
		{"to a port that a rule sets", "input", "drop", `udp dport 8472 udp dport set 9999; udp dport 9999 accept;`, ""},
		{"what has a way back", "input", "drop", `iifname "eth0" fib saddr . iif oif exists accept;`, ""},
		{"by chance", "input", "drop", `iifname "eth0" numgen random mod 2 0 accept;`, ""},
		{"intervals that touch", "input", "drop", `ip saddr @touching accept;`, ""},
		{"the whole world in a set", "input", "drop", `ip saddr @world accept;`, ""},
		{"a set of others", "input", "drop", `ip saddr @others accept;`, "input"},
		{"a set that only matches above a rate", "input", "accept", `ip saddr @busy drop;`, ""},
		{"an address and a port", "input", "drop", `ip saddr . udp dport { 192.0.2.8 . 8472, 192.0.2.9 . 8472 } accept;`, ""},
		{"an address and another port", "input", "drop", `ip saddr . udp dport { 192.0.2.8 . 53 } accept;`, "input"},
		{"what DHCP needs", "input", "drop", `udp sport 67 udp dport 68 accept;`, "input"},
		{"from a port that we do not know", "input", "drop", `udp sport 67 accept;`, ""},
		{"everything else in a map", "input", "accept", `udp dport vmap { 22 : accept, * : drop };`, "input"},
		{"counted by name and dropped", "input", "accept", `counter name hits drop;`, "input"},
		{"marked and dropped", "input", "accept", `meta mark set 1 drop;`, "input"},
		{"all but the loopback", "input", "drop", `iif lo accept;`, "input"},
		{"our port", "input", "drop", `udp dport 8472 accept;`, ""},
		{"our port among others", "input", "drop", `udp dport { 53, 4789, 8472 } accept;`, ""},
		{"our port in a range", "input", "drop", `udp dport 8000-9000 accept;`, ""},
		{"other ports", "input", "drop", `tcp dport 8472 accept; udp dport { 53, 4789 } accept; udp dport 8000-8471 accept;`, "input"},
		{"the hosts' network", "input", "drop", `ip saddr 192.0.2.0/24 accept;`, ""},
		{"other hosts' network", "input", "drop", `ip saddr 198.51.100.0/24 accept;`, "input"},
		{"connections that exist, which ours are not", "input", "drop", `ct state established,related accept; ct mark 1 accept; ct status dnat accept;`, "input"},
		{"what is not tracked", "input", "drop", `ct state untracked accept;`, ""},
		{"our port refused by name", "input", "accept", `udp dport 8472 drop;`, "input"},
		{"after a chain that does not return", "input", "drop", `goto zone; udp dport 8472 accept;`, "input"},
		{"after a chain that returns", "input", "drop", `jump zone; udp dport 8472 accept;`, ""},
		{"in another chain", "input", "drop", `jump open;`, ""},
		{"in a chain for others", "input", "drop", `iifname "lo" jump open;`, "input"},
		{"VXLAN to peers", "output", "drop", `oifname "lo" accept;`, "output"},
		{"VXLAN to peers let through", "output", "drop", `udp dport 8472 accept;`, ""},
	}
}

// TestAChainThatDropsIsNamed for certain drops only: it is followed rule by rule with a packet of ours, and what cannot be
// judged may let that through. A rule of ours in it would be lost with the next reload of what the admin has on disk.
func TestAChainThatDropsIsNamed(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	t.Cleanup(func() { nft(t, "add table inet mine; delete table inet mine") })
	pass(t, k, network)
	for _, c := range slices.Concat(forwardRules(), hostRules()) {
		nft(t, fmt.Sprintf("add table inet mine; delete table inet mine; table inet mine { "+
			"set touching { type ipv4_addr; flags interval; elements = { 192.0.1.0/24, 192.0.2.0/24 }; }; set world { type ipv4_addr; flags interval; elements = { 0.0.0.0/0 }; };"+
			"set others { type ipv4_addr; flags interval; elements = { 192.0.1.0/24, 192.0.3.0/24 }; }; set busy { type ipv4_addr; limit rate over 100000/second; elements = { 192.0.2.8 }; };"+
			"set seen { type ipv4_addr; flags dynamic; size 10; }; counter hits { }; chain zone { iifname \"lo\" return; ip protocol icmp accept; }; chain open { udp dport 8472 accept; };"+
			" chain fw { type filter hook %s priority 5; policy %s; %s }; }", c.hook, c.policy, c.rules))
		h, _, err := k.Read()
		must(t, err)
		got := ""
		for _, o := range h.Obstacles {
			if o.Chain != (backend.Chain{Family: "inet", Table: "mine", Name: "fw"}) {
				t.Errorf("%s: %v is in the way", c.claim, o)
			}
			got += string(o.Hook)
		}
		if got != c.want {
			t.Errorf("%s at %s: dropped at %q, want %q: %v", c.claim, c.hook, got, c.want, h.Obstacles)
		}
		if made := pass(t, k, network); len(made) > 0 {
			t.Errorf("%s: changed\n%s", c.claim, lines(made))
		}
	}
	nft(t, "delete table inet mine")
	for _, harmless := range []struct{ family, rules string }{
		{"inet", "chain fw { drop; };"},
		{"inet", "flags dormant; chain fw { type filter hook input priority 5; policy drop; };"},
		{"ip6", "chain fw { type filter hook input priority 5; policy drop; };"}, // peers are reached by IPv4
		{"bridge", "chain fw { type filter hook forward priority 5; policy drop; };"},
	} {
		nft(t, fmt.Sprintf("table %s mine { %s }", harmless.family, harmless.rules))
		if h, _, err := k.Read(); err != nil || len(h.Obstacles) > 0 {
			t.Errorf("%v: %v (%v), want none named", harmless, h.Obstacles, err)
		}
		nft(t, "delete table "+harmless.family+" mine")
	}
}

// TestARuleThatCannotBeReadIsNoFault of ours: the library does not read all that the kernel takes.
func TestARuleThatCannotBeReadIsNoFault(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	cleanIptables(t)
	iptables(t, "-P FORWARD DROP")
	pass(t, k, network)
	nft(t, "add rule ip filter FORWARD ct original ip daddr 203.0.113.5 accept")
	if made := pass(t, k, network); len(made) > 0 {
		t.Errorf("changed\n%s", lines(made))
	}
	text, err := exec.Command("nft", "list", "chain", "ip", "filter", "FORWARD").CombinedOutput()
	must(t, err)
	if n := strings.Count(string(text), "overlayd"); n != 2 {
		t.Errorf("%d rules of ours in\n%s", n, text)
	}
}

// TestManyWaysThroughSomebodysChainsAreFollowedOnce: there can be more than anybody could follow.
func TestManyWaysThroughSomebodysChainsAreFollowedOnce(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	t.Cleanup(func() { nft(t, "add table inet mine; delete table inet mine") })
	pass(t, k, network)
	var b strings.Builder
	b.WriteString("table inet mine { ")
	const deep = 14
	for i := deep; i >= 0; i-- {
		fmt.Fprintf(&b, "chain c%d { ", i)
		for range 4 {
			if i < deep {
				fmt.Fprintf(&b, "jump c%d; ", i+1)
			}
		}
		b.WriteString("}; ")
	}
	b.WriteString("chain fw { type filter hook input priority 5; policy drop; jump c0; }; }")
	nft(t, b.String())
	done := make(chan error, 1)
	go func() {
		h, _, err := k.Read()
		if err == nil && len(h.Obstacles) != 1 {
			err = fmt.Errorf("named are %v", h.Obstacles)
		}
		done <- err
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(lab.Patience):
		t.Fatal("the kernel is still being read")
	}
}
