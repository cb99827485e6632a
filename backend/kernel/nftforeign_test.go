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

// cleanIptables makes iptables' table of filters for the time of a test.
func cleanIptables(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { nft(t, "add table ip filter; delete table ip filter") })
	iptables(t, "-P FORWARD ACCEPT") // makes the table and its chains
}

// forward lists rules of iptables' chains that forwarded packets meet.
func forward(t *testing.T) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(iptables(t, "-S")) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "-A") {
			all = append(all, line)
		}
	}
	return all
}

func ourRules(chain string) []string {
	return []string{
		"-A " + chain + ` -o ovl0 -m comment --comment overlayd -j ACCEPT`,
		"-A " + chain + ` -i ovl0 -m comment --comment overlayd -j ACCEPT`,
	}
}

// TestIptablesForwardDropIsPassed as Docker asks admins to, and as iptables can print.
func TestIptablesForwardDropIsPassed(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	cleanIptables(t)
	others := plant(t)
	before := others()
	pass(t, k, network)
	const theirs = "-A FORWARD -s 203.0.113.0/24 -j DROP"
	visit := []string{"-A FORWARD -j DOCKER-USER"}
	iptables(t, "-A FORWARD -s 203.0.113.0/24 -j DROP")
	for _, step := range []struct {
		claim string
		act   []string
		want  []string
	}{
		{"accepting anyway", nil, []string{theirs}},
		{"dropping: ours come first", []string{"-P FORWARD DROP"}, append(ourRules("FORWARD"), theirs)},
		{"our rules deleted", []string{"-D FORWARD 1", "-D FORWARD 1"}, append(ourRules("FORWARD"), theirs)},
		{"one of them deleted", []string{"-D FORWARD 2"}, nil},
		{"accepting again: ours leave", []string{"-P FORWARD ACCEPT"}, []string{theirs}},
		{"a chain of Docker's name that nobody visits", []string{"-N DOCKER-USER", "-P FORWARD DROP"}, append(ourRules("FORWARD"), theirs)},
		{"a chain of another name that all visit", []string{"-N KUBE", "-I FORWARD -j KUBE"}, slices.Concat([]string{"-A FORWARD -j KUBE"}, ourRules("FORWARD"), []string{theirs})},
		{"a chain of Docker's name that some packets visit", []string{"-D FORWARD -j KUBE", "-X KUBE", "-A FORWARD -i lo -j DOCKER-USER"},
			slices.Concat(ourRules("FORWARD"), []string{theirs, "-A FORWARD -i lo -j DOCKER-USER"})},
		{"that too is gone", []string{"-D FORWARD -i lo -j DOCKER-USER"}, append(ourRules("FORWARD"), theirs)},
		{"Docker comes: ours move", []string{"-I FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"},
			slices.Concat(visit, []string{theirs}, ourRules("DOCKER-USER"), []string{"-A DOCKER-USER -j RETURN"})},
		{"Docker's chain is emptied", []string{"-F DOCKER-USER"}, slices.Concat(visit, []string{theirs}, ourRules("DOCKER-USER"))},
		{"Docker accepts", []string{"-P FORWARD ACCEPT"}, append(visit, theirs)},
		{"Docker drops again", []string{"-P FORWARD DROP"}, slices.Concat(visit, []string{theirs}, ourRules("DOCKER-USER"))},
		{"Docker goes: ours move back", []string{"-D FORWARD -j DOCKER-USER", "-F DOCKER-USER", "-X DOCKER-USER"}, append(ourRules("FORWARD"), theirs)},
	} {
		for _, act := range step.act {
			iptables(t, act)
		}
		pass(t, k, network)
		got := forward(t)
		if step.want == nil { // which of two equal ones comes first does not matter
			slices.Sort(got)
			step.want = append([]string{theirs}, ourRules("FORWARD")...)
			slices.Sort(step.want)
		}
		checkText(t, step.claim, strings.Join(got, "\n"), strings.Join(step.want, "\n"))
		if h, _, err := k.Read(); err != nil || len(h.Drops) > 0 != strings.Contains(iptables(t, "-S FORWARD"), "-P FORWARD DROP") {
			t.Errorf("%s: chains that drop are %v (%v)", step.claim, h.Drops, err)
		}
	}
	_, err := backend.Remove(k)
	must(t, err)
	checkText(t, "after uninstalling", strings.Join(forward(t), "\n"), theirs)
	checkText(t, "others' tables", others(), before)
}

// TestOurRulesLeaveEveryChainOfIptables: also one that a daemon before has put them in.
func TestOurRulesLeaveEveryChainOfIptables(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	cleanIptables(t)
	iptables(t, "-P FORWARD DROP")
	pass(t, k, network)
	iptables(t, "-N DOCKER-USER")
	iptables(t, "-I FORWARD -j DOCKER-USER")
	_, err := backend.Remove(k)
	must(t, err)
	checkText(t, "after uninstalling", strings.Join(forward(t), "\n"), "-A FORWARD -j DOCKER-USER")
}

// TestIptablesOfBothFamilies: Docker's ip6tables drops too.
func TestIptablesOfBothFamilies(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	t.Cleanup(func() { nft(t, "add table ip6 filter; delete table ip6 filter") })
	for _, args := range []string{"-P FORWARD DROP"} {
		text, err := exec.Command("ip6tables", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	pass(t, k, network)
	text, err := exec.Command("ip6tables", "-S", "FORWARD").CombinedOutput()
	must(t, err)
	checkText(t, "ip6tables -S FORWARD", strings.TrimSpace(string(text)), "-P FORWARD DROP\n"+strings.Join(ourRules("FORWARD"), "\n"))
}

// TestWhatIptablesDropsIsNamed, with what iptables says in words of its own; chains for forwarded packets get our rules.
func TestWhatIptablesDropsIsNamed(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	for _, c := range []struct {
		claim string
		rules []string
		want  string // obstacles
		ours  bool   // our rules are put in
	}{
		{"input with what hosts usually let in", []string{"-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT"}, "iptables INPUT", false},
		{"our port let in", []string{"-P INPUT DROP", "-A INPUT -p udp -m udp --dport 8472 -m comment --comment overlay -j ACCEPT"}, "", false},
		{"a range of ports let in", []string{"-P INPUT DROP", "-A INPUT -p udp --dport 8000:9000 -j ACCEPT"}, "", false},
		{"another range", []string{"-P INPUT DROP", "-A INPUT -p udp --dport 8000:8471 -j ACCEPT", "-A INPUT -p udp ! --dport 8472 -j ACCEPT"}, "iptables INPUT", false},
		{"ports in a list that we cannot read", []string{"-P INPUT DROP", "-A INPUT -p udp -m multiport --dports 53,8472 -j ACCEPT"}, "", false},
		{"what is not tracked let in", []string{"-P INPUT DROP", "-A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT"}, "", false},
		{"what is not new let in", []string{"-P INPUT DROP", "-A INPUT -m conntrack ! --ctstate NEW -j ACCEPT"}, "", false},
		{"what is for this host", []string{"-P INPUT DROP", "-A INPUT -m addrtype --dst-type LOCAL -j ACCEPT"}, "", false},
		{"what is for all", []string{"-P INPUT DROP", "-A INPUT -m addrtype --dst-type BROADCAST -j ACCEPT"}, "iptables INPUT", false},
		{"rejected at the end", []string{"-A INPUT -p tcp --dport 22 -j ACCEPT", "-A INPUT -j LOG", "-A INPUT -j REJECT"}, "iptables INPUT", false},
		{"made by ufw", []string{"-P INPUT DROP", "-N ufw-before-input", "-A INPUT -j ufw-before-input", "-A ufw-before-input -p icmp -j ACCEPT", "-A ufw-before-input -p udp --sport 67 --dport 68 -j ACCEPT"}, "ufw INPUT", false},
		{"output", []string{"-P OUTPUT DROP"}, "iptables OUTPUT", false},
		{"forwarded ones dropped", []string{"-P FORWARD DROP"}, "", true},
		{"forwarded ones rejected at the end", []string{"-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -j REJECT"}, "", true},
		{"forwarded ones let through by their address", []string{"-A FORWARD -s 10.5.0.0/16 -d 10.5.0.0/16 -j ACCEPT", "-A FORWARD -j REJECT"}, "", false},
		{"forwarded ones to some pods dropped", []string{"-A FORWARD -d 10.5.35.0/24 -j DROP"}, "iptables FORWARD", false},
		{"forwarded ones to some ports dropped", []string{"-A FORWARD -p tcp --dport 1:1023 -j DROP"}, "", false},
		{"new forwarded ones from peers dropped", []string{"-A FORWARD -i overlay.1 -m conntrack --ctstate NEW -j DROP"}, "iptables FORWARD", false},
		{"forwarded ones let through but for some", []string{"-A FORWARD -s 203.0.113.0/24 -j DROP"}, "", false},
	} {
		for _, rule := range c.rules {
			iptables(t, rule)
		}
		pass(t, k, network)
		h, _, err := k.Read()
		must(t, err)
		got := ""
		for _, o := range h.Obstacles {
			got += o.Tool + " " + o.Chain.Name
		}
		if got != c.want {
			t.Errorf("%s: named is %q, want %q", c.claim, got, c.want)
		}
		if put := strings.Contains(iptables(t, "-S FORWARD"), "overlayd"); put != c.ours {
			t.Errorf("%s: our rules are there: %v, want %v", c.claim, put, c.ours)
		}
		nft(t, "delete table ip filter")
		pass(t, k, network)
	}
}

// TestADropBeforeOurRulesIsNamed: they stay where they are, for it may be somebody's will.
func TestADropBeforeOurRulesIsNamed(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	cleanIptables(t)
	iptables(t, "-P FORWARD DROP")
	pass(t, k, network)
	iptables(t, "-I FORWARD -o overlay.1 -j DROP")
	if made := pass(t, k, network); len(made) > 0 {
		t.Errorf("changed\n%s", lines(made))
	}
	h, _, err := k.Read()
	must(t, err)
	if len(h.Obstacles) != 1 || !strings.Contains(h.Obstacles[0].Remedy(h, 8472), "iptables -S FORWARD") {
		t.Errorf("named are %v", h.Obstacles)
	}
}

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
			"counter hits { }; chain zone { iifname \"lo\" return; ip protocol icmp accept; }; chain open { udp dport 8472 accept; };"+
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
	for _, harmless := range []string{
		"table inet mine { chain fw { drop; }; }",
		"table inet mine { flags dormant; chain fw { type filter hook input priority 5; policy drop; }; }",
		"table ip6 mine { chain fw { type filter hook input priority 5; policy drop; }; }; delete table ip6 mine",
		"table bridge mine { chain fw { type filter hook forward priority 5; policy drop; }; }; delete table bridge mine",
	} {
		nft(t, "add table inet mine; delete table inet mine; "+harmless)
		if h, _, err := k.Read(); err != nil || len(h.Obstacles) > 0 {
			t.Errorf("%s: %v (%v), want none named", harmless, h.Obstacles, err)
		}
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
