package kernel_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// TestAWholeTableIsMadeAgain with all that its sets held, whoever took it away.
func TestAWholeTableIsMadeAgain(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	attach(t, "pod1", 1450, "10.5.34.8", "fd00:5:0:22::8")
	pass(t, k, network)
	right, rows := tables(t), watchIP(t)
	rows.take()
	for _, script := range []string{
		"flush ruleset", "delete table inet overlayd", "delete table bridge overlayd", "delete table inet overlayd; delete table bridge overlayd",
		"flush ruleset; add table inet overlayd; add table bridge overlayd",
		"flush ruleset; add table inet overlayd; add map inet overlayd subnets4 { type ipv4_addr : verdict; }",
	} {
		nft(t, script)
		for _, c := range pass(t, k, network) {
			switch c.Row().(type) {
			case backend.Table, backend.Member, backend.Pair, backend.PodAddr, backend.PodMAC, backend.PodPort:
			default:
				t.Errorf("%s: %s", script, c)
			}
		}
		checkText(t, script, tables(t), right)
	}
	if touched := ours.FindAllString(rows.take(), -1); touched != nil {
		t.Errorf("rows are touched: %q", touched)
	}
}

// tables prints what is in ours, without the tables' own comments: an existing table gets none.
func tables(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, family := range []string{"inet", "bridge"} {
		text, err := exec.Command("nft", "-s", "list", "table", family, "overlayd").CombinedOutput()
		must(t, err)
		_, text, _ = bytes.Cut(text, []byte("\n"))
		body := strings.TrimPrefix(string(text), "\tcomment \"made by overlayd, which undoes what is changed here\"\n")
		all.WriteString(sorted(strings.TrimSuffix(body, "}\n") + "\n"))
	}
	return all.String()
}

// TestCountersSurvive what happens to their tables. Values are put in as nft loads a saved ruleset.
func TestCountersSurvive(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	n := 0
	want := map[string]uint64{}
	text := regexp.MustCompile(`(?s)counter (\w+) \{(.*?)packets 0 bytes 0`).ReplaceAllStringFunc(ruleset(t), func(c string) string {
		n++
		want[strings.Fields(c)[1]] = uint64(n)
		return strings.Replace(c, "packets 0 bytes 0", fmt.Sprintf("packets %d bytes %d", n, 100*n), 1)
	})
	if names := slices.Sorted(maps.Keys(want)); !slices.Equal(names, []string{"malformed", "not_unicast", "pod_vxlan", "router_advert", "spoofed", "stranger"}) {
		t.Fatalf("counters are %v", names)
	}
	nft(t, "flush ruleset\n"+text)
	check := func(act string) {
		t.Helper()
		pass(t, k, network)
		h, _, err := k.Read()
		must(t, err)
		if !maps.Equal(h.Dropped, want) {
			t.Errorf("after %s: %v, want %v", act, h.Dropped, want)
		}
		for name, packets := range want {
			if line := fmt.Sprintf("packets %d bytes %d\n", packets, 100*packets); !strings.Contains(ruleset(t), line) {
				t.Errorf("after %s: nft prints no %q of %s", act, line, name)
			}
		}
	}
	check("loading them")
	for _, script := range []string{
		"insert rule inet overlayd guard accept", "flush table bridge overlayd", "flush chain inet overlayd guard; delete counter inet overlayd stranger",
		"delete table inet overlayd", "flush ruleset", "add counter inet overlayd mine { packets 5 bytes 500; }",
	} {
		nft(t, script)
		check(script)
	}
}

// TestAnotherFilterKeepsWhatItCan: another guard, VNI or port is one transaction, which leaves elements alone that are
// right before and after.
func TestAnotherFilterKeepsWhatItCan(t *testing.T) {
	plugIn(t)
	network := backendtest.Network(t)
	other := network
	other.Config.Backend.Port, other.Config.Backend.VNI = 4789, 7
	pairs := []string{
		"element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }", "element inet overlayd hosts4 { 192.0.2.9 . 192.0.2.9/32 }",
		"element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }", "element inet overlayd subnets4 { 192.0.2.9 . 10.5.36.0/24 }",
		"element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }", "element inet overlayd subnets6 { 192.0.2.9 . fd00:5:0:24::/64 }",
	}
	vteps := []string{"element inet overlayd vteps4 { 192.0.2.8/32 }", "element inet overlayd vteps4 { 192.0.2.9/32 }"}
	guard := func(g backend.Guard) func(*kernel.Options) { return func(o *kernel.Options) { o.Guard = g } }
	current := openWith(t, with(nil))
	pass(t, current, network)
	events := listen(t)
	for _, step := range []struct {
		claim       string
		options     func(*kernel.Options)
		other       bool
		come, leave []string
	}{
		{"another VNI and port", nil, true, nil, nil},
		{"guard vtep", guard(backend.GuardVTEP), true, vteps, pairs},
		{"guard full again", nil, true, pairs, vteps},
		{"no masquerade", func(o *kernel.Options) { o.Masquerade = false }, true, nil, nil},
		{"guard off", guard(backend.GuardOff), true, nil, pairs},
		{"guard full, VNI and port as they were", nil, false, pairs, nil},
	} {
		t.Run(step.claim, func(t *testing.T) {
			wanted := network
			if step.other {
				wanted = other
			}
			k, err := kernel.Open(with(step.options))
			must(t, err)
			defer k.Close()
			var come, leave []string
			events.drain()
			for _, c := range pass(t, k, wanted) {
				text := ""
				switch row := c.Row().(type) {
				case backend.Member, backend.Pair:
					text = row.String()
				}
				switch {
				case text == "":
				case c.New == nil:
					leave = append(leave, text)
				default:
					come = append(come, text)
				}
			}
			slices.Sort(come)
			slices.Sort(leave)
			if !slices.Equal(come, step.come) || !slices.Equal(leave, step.leave) {
				t.Errorf("came\n%s\nleft\n%s", strings.Join(come, "\n"), strings.Join(leave, "\n"))
			}
			told := events.drain()
			if n := strings.Count(told, "generation"); n != 1 {
				t.Errorf("%d transactions, want one", n)
			}
			if n := strings.Count(told, "delete element"); n != len(step.leave) {
				t.Errorf("%d elements are deleted, want %d", n, len(step.leave))
			}
			if strings.Contains(told, "set inet") || strings.Contains(told, "table inet") {
				t.Errorf("more than rules and elements is made anew:\n%s", told)
			}
		})
	}
}

// TestAnotherLengthOfSubnetsIsOneTransaction: the sets of peers change with the rules, and nobody is shut out in between.
func TestAnotherLengthOfSubnetsIsOneTransaction(t *testing.T) {
	plugIn(t)
	network := backendtest.Network(t)
	k := openWith(t, with(nil))
	pass(t, k, network)
	events := listen(t)
	for _, c := range []struct {
		claim        string
		transactions int // one, and one for what has to go after rows outside of nf_tables
		change       func(*subnet.Snapshot)
		prints       []string
	}{
		{"no whole bytes", 1, func(s *subnet.Snapshot) { s.Config.IPv4.SubnetLen = 25 }, []string{`192.0.2.8 . 0xa052300-0xa0523ff comment "10.5.35.0/24"`}},
		{"other whole bytes", 1, func(s *subnet.Snapshot) { s.Config.IPv4.SubnetLen, s.Config.IPv6.SubnetLen = 24, 72 },
			[]string{`192.0.2.8 . 0xa0523 comment "10.5.35.0/24"`, `192.0.2.8 . 0xfd000005000000230000000000000000-0xfd00000500000023ffffffffffffffff comment "fd00:5:0:23::/64"`}},
		{"no IPv6", 2, func(s *subnet.Snapshot) {
			s.Config.IPv6 = subnet.Pool{}
			s.Leases = slices.Clone(s.Leases)
			for i := range s.Leases {
				s.Leases[i].Subnet6 = netip.Prefix{}
			}
		}, []string{`192.0.2.8 . 0xa0523 comment "10.5.35.0/24"`}},
		{"as it was", 1, func(*subnet.Snapshot) {}, []string{`192.0.2.8 . 0xa0523 comment "10.5.35.0/24"`, `192.0.2.8 . 0xfd00000500000023 comment "fd00:5:0:23::/64"`}},
	} {
		wanted := network
		c.change(&wanted)
		events.drain()
		pass(t, k, wanted)
		if n := strings.Count(events.drain(), "generation"); n != c.transactions {
			t.Errorf("%s: %d transactions, want %d", c.claim, n, c.transactions)
		}
		text := ruleset(t)
		for _, want := range c.prints {
			if !strings.Contains(text, want) {
				t.Errorf("%s: nft prints no %s in\n%s", c.claim, want, text)
			}
		}
	}
}
