package kernel_test

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
)

// foreign is what others have on the host, with handles: those tell whether it was made anew.
const foreign = `
table ip others {
	set theirs { type ipv4_addr; flags interval; elements = { 10.5.35.0/24, 192.0.2.0/25 }; }
	counter seen { packets 7 bytes 700; }
	chain overlayd { type filter hook input priority -310; policy accept; ip saddr @theirs counter name "seen" accept; }
}
table inet firewalld {
	chain guard { udp dport 8472 accept comment "overlayd"; }
	chain filter_FORWARD { type filter hook forward priority 10; policy accept; jump guard; }
}`

// plant adds others' tables for the time of a test, and returns a function that prints them.
func plant(t *testing.T) func() string {
	t.Helper()
	nft(t, foreign)
	t.Cleanup(func() {
		for _, table := range []string{"ip others", "inet firewalld"} {
			nft(t, "add table "+table+"; delete table "+table)
		}
	})
	return func() string {
		var all strings.Builder
		for _, table := range []string{"ip others", "inet firewalld"} {
			text, _ := exec.Command("nft", append([]string{"-a", "list", "table"}, strings.Fields(table)...)...).CombinedOutput()
			all.Write(text)
		}
		return all.String()
	}
}

const (
	tableInet   = "~ table inet overlayd: "
	tableBridge = "~ table bridge overlayd: "
)

// acts are what an admin, a script or an attacker does to our tables, and the changes that undo it. Of a table's change
// only the finding is given.
var acts = []struct {
	claim, script string
	want          []string
}{
	{"a rule is deleted", "delete rule inet overlayd guard handle $stranger", []string{tableInet + "chain guard has 9 rules, not 10"}},
	{"a rule is inserted", "insert rule inet overlayd guard accept", []string{tableInet + "chain guard has 11 rules, not 10"}},
	{"a rule is appended", "add rule inet overlayd input accept", []string{tableInet + "chain input has 2 rules, not 1"}},
	{"a rule with a set of its own is inserted", "insert rule inet overlayd guard udp sport { 1, 2 } accept", []string{tableInet + "chain guard has 11 rules, not 10"}},
	{"a rule is inserted in a chain without rules", "add rule inet overlayd settings accept", []string{tableInet + "chain settings has 1 rules, not 0"}},
	{"rules change places", `delete rule inet overlayd guard handle $stranger; insert rule inet overlayd guard counter name "stranger" drop comment "from anybody else"`,
		[]string{tableInet + "rule 1 of chain guard is another"}},
	{"a rule is replaced", `replace rule inet overlayd guard handle $stranger counter name "stranger" accept comment "from anybody else"`,
		[]string{tableInet + "rule 10 of chain guard is another"}},
	{"a rule counts for another", `replace rule inet overlayd guard handle $stranger counter name "malformed" drop comment "from anybody else"`,
		[]string{tableInet + "rule 10 of chain guard is another"}},
	{"a rule looks in another set", `replace rule bridge overlayd prerouting handle $ports iifname != @ports counter accept comment "ports that are no pod's, or too new to be listed"`,
		[]string{tableBridge + "rule 3 of chain prerouting is another"}},
	{"a rule loses its comment", `replace rule inet overlayd guard handle $stranger counter name "stranger" drop`, []string{tableInet + "rule 10 of chain guard is another"}},
	{"a chain is emptied", "flush chain inet overlayd postrouting", []string{tableInet + "chain postrouting has 0 rules, not 11"}},
	{"a table is emptied", "flush table inet overlayd", []string{tableInet + "chain guard has 0 rules, not 10"}},
	{"a chain is deleted", "delete chain inet overlayd output", []string{tableInet + "it has 6 chains and 16 sets"}},
	{"a chain is added", "add chain inet overlayd mine { type filter hook input priority -400; policy drop; }", []string{tableInet + "it has 8 chains and 16 sets"}},
	{"a chain is renamed", "delete chain inet overlayd output; add chain inet overlayd mine { type filter hook output priority -310; }",
		[]string{tableInet + "chain output is missing"}},
	{"a chain drops by policy", "chain inet overlayd output { policy drop; }", []string{tableInet + "chain output is another"}},
	{"a chain has another priority", "delete chain inet overlayd output; add chain inet overlayd output { type filter hook output priority 0; comment \"what this host sends\"; }",
		[]string{tableInet + "chain output is another"}},
	{"a chain has another hook", "delete chain inet overlayd output; add chain inet overlayd output { type filter hook forward priority -310; comment \"what this host sends\"; }",
		[]string{tableInet + "chain output is another"}},
	{"the settings' comment is lost", "delete chain inet overlayd settings; add chain inet overlayd settings", []string{tableInet + "its chain settings says nothing"}},
	{"the settings say something else", "delete chain bridge overlayd settings; add chain bridge overlayd settings { comment \"hello\"; }",
		[]string{tableBridge + "its chain settings says nothing"}},
	{"the settings are gone", "delete chain bridge overlayd settings", []string{tableBridge + "its chain settings is missing"}},
	{"a set is added", "add set inet overlayd mine { type ipv4_addr; }", []string{tableInet + "it has 7 chains and 17 sets"}},
	{"a map that leads to our chain is added", "add map inet overlayd mine { type ipv4_addr : verdict; elements = { 192.0.2.66 : jump guard }; }",
		[]string{tableInet + "it has 7 chains and 17 sets"}},
	{"a table sleeps", "add table inet overlayd { flags dormant; }", []string{tableInet + "it is dormant"}},
	{"both tables sleep", "add table inet overlayd { flags dormant; }; add table bridge overlayd { flags dormant; }",
		[]string{tableBridge + "it is dormant", tableInet + "it is dormant"}},
	{"both tables have a rule more", "insert rule inet overlayd guard accept; insert rule bridge overlayd prerouting accept",
		[]string{tableBridge + "chain prerouting has 15 rules, not 14", tableInet + "chain guard has 11 rules, not 10"}},

	{"an element is deleted", "delete element inet overlayd subnets4 { 192.0.2.8 . 0x0a0523 }", []string{"+ element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }"}},
	{"a prefix is deleted", "delete element inet overlayd own6 { fd00:5:0:22::/64 }", []string{"+ element inet overlayd own6 { fd00:5:0:22::/64 }"}},
	{"an address is deleted, and another added", "delete element inet overlayd outer4 { 192.0.2.7 }; add element inet overlayd outer4 { 192.0.2.66 }",
		[]string{"+ element inet overlayd outer4 { 192.0.2.7/32 }", "- element inet overlayd outer4 { 192.0.2.66/32 }"}},
	{"a pod's port is deleted", "delete element bridge overlayd ports { vethpod1 }", []string{"+ element bridge overlayd ports { vethpod1 }"}},
	{"a stranger is let in", "add element inet overlayd subnets4 { 192.0.2.66 . 0x0a0563 }", []string{"- element inet overlayd subnets4 { 192.0.2.66 . 10.5.99.0/24 }"}},
	{"a stranger is let in by an interval", "add element inet overlayd peers4 { 192.0.2.66 . 0x0a056300-0x0a0563ff }", []string{"- element inet overlayd peers4 { 192.0.2.66 . 10.5.99.0/24 }"}},
	{"a stranger is let in as a peer", "add element inet overlayd subnets4 { 192.0.2.66 . 0x0a0523, 192.0.2.67 . 0x0a0523 }; add element inet overlayd peers4 { 192.0.2.68 . 0x0a052300-0x0a0523ff }",
		[]string{"- element inet overlayd subnets4 { 192.0.2.67 . 10.5.35.0/24 }", "- element inet overlayd subnets4 { 192.0.2.66 . 10.5.35.0/24 }", "- element inet overlayd peers4 { 192.0.2.68 . 10.5.35.0/24 }"}},
	{"a stranger is let in instead of a peer", "delete element inet overlayd subnets4 { 192.0.2.8 . 0x0a0523 }; add element inet overlayd subnets4 { 192.0.2.66 . 0x0a0523 }",
		[]string{"~ element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 } (was element inet overlayd subnets4 { 192.0.2.66 . 10.5.35.0/24 })"}},
	{"a stranger is let in instead of a peer, by an interval", "delete element inet overlayd subnets4 { 192.0.2.8 . 0x0a0523 }; add element inet overlayd peers4 { 192.0.2.66 . 0x0a052300-0x0a0523ff }",
		[]string{"~ element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 } (was element inet overlayd peers4 { 192.0.2.66 . 10.5.35.0/24 })"}},
	{"a stranger is let in with one address", "add element inet overlayd hosts4 { 192.0.2.66 . 0x0a052305 }", []string{"- element inet overlayd hosts4 { 192.0.2.66 . 10.5.35.5/32 }"}},
	{"a stranger is let in with a range", "add element inet overlayd peers4 { 192.0.2.66 . 0x0a052301-0x0a0523f0 }",
		[]string{"- element inet overlayd peers4 { 0xc00002420a052301-0xc00002420a0523f0 }"}},
	{"strangers are let in", "add element inet overlayd peers4 { 192.0.2.64-192.0.2.66 . 0x0a052300-0x0a0523ff }",
		[]string{"- element inet overlayd peers4 { 0xc00002400a052300-0xc00002420a0523ff }"}},
	{"everybody is let in", "add element inet overlayd peers4 { * }", []string{"- element inet overlayd peers4 { * }"}},
	{"every port is a pod's", "add element bridge overlayd ports { * }", []string{"- element bridge overlayd ports { * }"}},
	{"ranges are excluded from masquerade", "add element inet overlayd exclude4 { 203.0.113.1-203.0.113.6, 203.0.113.9-203.0.113.77 }",
		[]string{"- element inet overlayd exclude4 { 0xcb007109-0xcb00714d }", "- element inet overlayd exclude4 { 0xcb007101-0xcb007106 }"}},
	{"the rest of all addresses is excluded", "add element inet overlayd exclude4 { 203.0.113.1-255.255.255.255 }",
		[]string{"- element inet overlayd exclude4 { 0xcb007101-0xffffffff }"}},
	{"a pod may have another's address", "add element bridge overlayd pods4 { vethpod1 . 02:00:00:00:00:08 . 10.5.34.99 }",
		[]string{"- element bridge overlayd pods4 { vethpod1 . 02:00:00:00:00:08 . 10.5.34.99 }"}},
	{"a pod may have two MACs", "add element bridge overlayd macs { vethpod1 . 02:00:00:00:00:99 }; add element bridge overlayd pods4 { vethpod1 . 02:00:00:00:00:99 . 10.5.34.8 }",
		[]string{"- element bridge overlayd pods4 { vethpod1 . 02:00:00:00:00:99 . 10.5.34.8 }", "- element bridge overlayd macs { vethpod1 . 02:00:00:00:00:99 }"}},
	{"a set is emptied", "flush set inet overlayd subnets6",
		[]string{"+ element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }", "+ element inet overlayd subnets6 { 192.0.2.9 . fd00:5:0:24::/64 }"}},
	{"a set is deleted with what uses it", "flush chain inet overlayd guard; delete set inet overlayd subnets6",
		[]string{tableInet + "set subnets6 is another", "+ element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }", "+ element inet overlayd subnets6 { 192.0.2.9 . fd00:5:0:24::/64 }"}},
	{"a set is made anew with another type", "flush chain inet overlayd guard; delete set inet overlayd subnets6; add set inet overlayd subnets6 { type ipv4_addr; }",
		[]string{tableInet + "set subnets6 is another", "+ element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }", "+ element inet overlayd subnets6 { 192.0.2.9 . fd00:5:0:24::/64 }"}},
	{"a counter is deleted with what uses it", "flush chain inet overlayd guard; delete counter inet overlayd stranger", []string{tableInet + "counter stranger is missing"}},
}

// TestOnePassUndoesWhatIsDoneToOurTables, and touches nothing that was right: neither others' tables, nor elements, nor
// any row outside of nf_tables.
func TestOnePassUndoesWhatIsDoneToOurTables(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	others := plant(t)
	events, rows := listen(t), watchIP(t)
	pass(t, k, network)
	attach(t, "pod1", 1450, "10.5.34.8", "fd00:5:0:22::8")
	pass(t, k, network)
	rows.take()
	theirs, right := others(), sorted(ruleset(t, "-s"))
	for _, act := range acts {
		t.Run(act.claim, func(t *testing.T) {
			script := act.script
			if strings.Contains(script, "$") {
				script = strings.NewReplacer("$stranger", handle(t, "inet overlayd guard", "from anybody else"), "$ports", handle(t, "bridge overlayd prerouting", "too new to be listed")).Replace(script)
			}
			nft(t, script)
			events.drain()
			made := pass(t, k, network)
			checkText(t, "changes", strings.Join(findings(made), "\n"), strings.Join(act.want, "\n"))
			checkText(t, "our tables", sorted(ruleset(t, "-s")), right)
			checkText(t, "others' tables", others(), theirs)
			checkEvents(t, events.drain(), made)
		})
	}
	if touched := ours.FindAllString(rows.take(), -1); touched != nil {
		t.Errorf("rows are touched: %q", touched)
	}
}

// ours finds rows of ours in what "ip monitor" prints, and whatever is deleted but for marks and neighbours of the kernel's.
var ours = regexp.MustCompile(`(?m)^.*(overlayd|PERMANENT|nhid|id 142|overlay\.1: |ovl0: ).*$|^Deleted .*dev (overlay\.1|ovl0).*[^E] $`)

var elements = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)

// sorted puts what nft prints in order, and elements of sets: nft has the kernel's.
func sorted(text string) string {
	text = elements.ReplaceAllStringFunc(text, func(list string) string {
		all := regexp.MustCompile(`,\s+`).Split(elements.FindStringSubmatch(list)[1], -1)
		slices.Sort(all)
		return strings.Join(all, "\n")
	})
	parts := strings.Split(text, "\n\n")
	slices.Sort(parts)
	return strings.Join(parts, "\n\n")
}

// handle finds a rule by its comment, as "nft -a" shows it.
func handle(t *testing.T, chain, comment string) string {
	t.Helper()
	text, err := exec.Command("nft", append([]string{"-a", "list", "chain"}, strings.Fields(chain)...)...).CombinedOutput()
	must(t, err)
	found := regexp.MustCompile(comment + `" # handle (\d+)`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no rule %q in\n%s", comment, text)
	}
	return string(found[1])
}

// findings are the changes, of tables only what was wrong.
func findings(made []backend.Change) []string {
	var all []string
	for _, c := range made {
		if table, ok := c.Old.(backend.Table); ok && c.New != nil {
			all = append(all, "~ table "+table.Family+" overlayd: "+table.Broken)
			continue
		}
		all = append(all, c.String())
	}
	return all
}

// checkEvents says that of elements and sets the kernel was told no more than the changes are about.
func checkEvents(t *testing.T, events string, made []backend.Change) {
	t.Helper()
	var removed, added, tables int
	for _, c := range made {
		switch c.Row().(type) {
		case backend.Table:
			tables++
			continue
		}
		if c.Old != nil {
			removed++
		}
		if c.New != nil {
			added++
		}
	}
	count := func(pattern string) int { return len(regexp.MustCompile(pattern).FindAllString(events, -1)) }
	if got := count(`(?m)^delete element `); got != removed {
		t.Errorf("%d elements are deleted, want %d:\n%s", got, removed, events)
	}
	if got := count(`(?m)^add element `); got != added {
		t.Errorf("%d elements are added, want %d:\n%s", got, added, events)
	}
	if got := count(`(?m)^delete table `); got > 0 {
		t.Errorf("tables are deleted:\n%s", events)
	}
	if tables == 0 && count(`(?m)^(add|delete) (set|chain|rule|table|object) `) > 0 {
		t.Errorf("more than elements is touched:\n%s", events)
	}
}

// TestPaddingOfAKeyIsZero: packets have zeros there, so a key with something else lets nobody in, however much it looks like one
// that does. nft cannot make it.
func TestPaddingOfAKeyIsZero(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	right := backend.Pair{Set: backend.SetSubnets, Inner: netip.MustParsePrefix("10.5.35.0/24"), Outer: netip.MustParseAddr("192.0.2.8")}
	bent := backend.Stray{Family: backend.FamilyInet, Set: "subnets4", First: "\xc0\x00\x02\x08\x0a\x05\x23\x01"}
	for _, err := range k.Apply([]backend.Change{{Old: right}, {New: bent}}) {
		must(t, err)
	}
	checkText(t, "changes", lines(pass(t, k, network)), lines([]backend.Change{{New: right}, {Old: bent}}))
	nft(t, "get element inet overlayd subnets4 { 192.0.2.8 . 0x0a0523 }")
}
