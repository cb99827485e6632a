package kernel_test

import (
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
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

// TestOurRulesAreNotPutInAgainWhileOthersChangeTheirs: what is there is read each time, what is needed may be from before.
func TestOurRulesAreNotPutInAgainWhileOthersChangeTheirs(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	cleanIptables(t)
	t.Cleanup(func() { nft(t, "add table inet mine; delete table inet mine") })
	pass(t, k, network)
	iptables(t, "-P FORWARD DROP")
	_, _, err := k.Read() // says that our rules are needed, and not that they are there
	must(t, err)
	var b strings.Builder
	for range 5000 { // a reading takes longer than the pauses of the other
		b.WriteString("ip saddr 203.0.113.5 accept; ")
	}
	nft(t, "table inet mine { set s { type ipv4_addr; }; chain fw { type filter hook forward priority 5; "+b.String()+" }; }")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_ = exec.Command("nft", "add element inet mine s { 10.0.0.1 }; delete element inet mine s { 10.0.0.1 }").Run()
		}
	}()
	for range 5 {
		h, have, err := k.Read()
		must(t, err)
		k.Apply(backend.Diff(backend.Plan(h, network), have))
	}
	stop()
	<-ended
	checkText(t, "iptables -S", strings.Join(forward(t), "\n"), strings.Join(ourRules("FORWARD"), "\n"))
}
