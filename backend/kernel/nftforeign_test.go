package kernel_test

import (
	"fmt"
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

// TestAHandMadeChainThatDropsIsNamed until it accepts our bridge both ways: a rule of ours in it would be lost with the
// next reload of what the admin has on disk.
func TestAHandMadeChainThatDropsIsNamed(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	t.Cleanup(func() { nft(t, "add table inet mine; delete table inet mine") })
	const chain = "table inet mine { chain fw { type filter hook forward priority 5; policy drop; %s }; }"
	nft(t, fmt.Sprintf(chain, ""))
	pass(t, k, network)
	drops := []backend.Chain{{Family: "inet", Table: "mine", Name: "fw"}}
	for _, c := range []struct {
		claim, rules string
		want         []backend.Chain
	}{
		{"nothing accepted", "", drops},
		{"one way", `iifname "ovl0" accept;`, drops},
		{"the other way", `oifname "ovl0" counter accept;`, drops},
		{"both ways", `iifname "ovl0" counter accept; oifname "ovl0" accept comment "pods";`, nil},
		{"both ways for another device", `iifname "ovl1" accept; oifname "ovl1" accept;`, drops},
		{"not from our device", `iifname != "ovl0" accept; oifname "ovl0" accept;`, drops},
		{"both ways for some packets", `iifname "ovl0" tcp dport 80 accept; oifname "ovl0" accept;`, drops},
		{"both ways, but dropped", `iifname "ovl0" drop; oifname "ovl0" drop;`, drops},
		{"both ways, but by number", `meta iif 1 accept; meta oif 1 accept;`, drops},
	} {
		nft(t, "add table inet mine; delete table inet mine; "+fmt.Sprintf(chain, c.rules))
		h, _, err := k.Read()
		must(t, err)
		if !slices.Equal(h.Drops, c.want) {
			t.Errorf("%s: %v, want %v", c.claim, h.Drops, c.want)
		}
		if made := pass(t, k, network); len(made) > 0 {
			t.Errorf("%s: changed\n%s", c.claim, lines(made))
		}
	}
	for _, harmless := range []string{
		"table inet mine { chain fw { type filter hook forward priority 5; policy accept; drop; }; }",
		"table inet mine { chain fw { type filter hook input priority 5; policy drop; iif lo accept; }; }",
		"table inet mine { chain fw { drop; }; }",
		"table bridge mine { chain fw { type filter hook forward priority 5; policy drop; }; }; delete table bridge mine",
	} {
		nft(t, "add table inet mine; delete table inet mine; "+harmless)
		if h, _, err := k.Read(); err != nil || len(h.Drops) > 0 {
			t.Errorf("%s: %v (%v), want none named", harmless, h.Drops, err)
		}
	}
}
