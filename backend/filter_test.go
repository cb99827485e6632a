package backend_test

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/subnet"
)

// drawFilter makes any filter that a plan can want: the names are what --bridge takes.
func drawFilter(t *rapid.T) backend.Filter {
	f := backend.Filter{
		Bridge: rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[!-$&-.0-9;-~]{1,15}`)).Draw(t, "bridge"),
		VNI:    rapid.Uint32Range(0, 1<<24-1).Draw(t, "VNI"), Port: rapid.Uint16().Draw(t, "port"),
		Bits4: rapid.IntRange(0, 31).Draw(t, "bits4"), Bits6: rapid.IntRange(0, 126).Draw(t, "bits6"), Outer6: rapid.Bool().Draw(t, "outer6"),
		Guard:      rapid.SampledFrom([]backend.Guard{backend.GuardFull, backend.GuardVTEP, backend.GuardOff}).Draw(t, "guard"),
		Masquerade: rapid.Bool().Draw(t, "masquerade"), AntiSpoof: rapid.Bool().Draw(t, "antispoof"),
	}
	if rapid.Bool().Draw(t, "untracked4") {
		f.Untracked4 = netip.PrefixFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "pool4"))), rapid.IntRange(0, 32).Draw(t, "length4"))
	}
	if rapid.Bool().Draw(t, "untracked6") {
		a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pool6")))
		if !a.Is4In6() { // which no pool is
			f.Untracked6 = netip.PrefixFrom(a, rapid.IntRange(0, 128).Draw(t, "length6"))
		}
	}
	return f
}

// nft takes comments of 128 bytes with the zero at their end (NFTNL_UDATA_COMMENT_MAXLEN).
func TestAFilterIsReadFromItsComment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawFilter(t)
		settings, inside := want.Comments()
		if len(settings) >= 128 || len(inside) >= 128 {
			t.Fatalf("%d and %d bytes: %s, %s", len(settings), len(inside), settings, inside)
		}
		if got, err := backend.ParseFilter(settings, inside); err != nil || got != want {
			t.Fatalf("%s\n got %+v (%v)\nwant %+v", want, got, err, want)
		}
	})
}

func TestAnyBridgeThatTheFlagTakesIsRead(t *testing.T) {
	for _, name := range []string{"", "-", "--", "4", "guard", `"`, "br-0.1@x"} {
		want := backend.Filter{Bridge: name, Bits4: 24, Guard: backend.GuardOff}
		if got, err := backend.ParseFilter(want.Comments()); err != nil || got != want {
			t.Errorf("bridge %q is read as %q (%v)", name, got.Bridge, err)
		}
	}
}

func TestTheLongestFilterFitsAComment(t *testing.T) {
	f := backend.Filter{Bridge: "fifteen-letters", VNI: 1<<24 - 1, Port: 65535, Bits4: 24, Bits6: 112, Guard: backend.GuardFull, Masquerade: true, AntiSpoof: true}
	if text := f.String(); len(text) >= 128 {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}

func TestAFilterIsReadFromNoOtherText(t *testing.T) {
	const good = "bridge ovl0 vni 1 port 8472 subnets 24/64 outer 4 guard full masquerade yes antispoof yes"
	if _, err := backend.ParseFilter(good, ""); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", "nonsense", good[1:], good[:len(good)-1], good + " ", " " + good, good + " and more",
		strings.Replace(good, "vni 1", "vni 01", 1), strings.Replace(good, "vni 1", "vni -1", 1), strings.Replace(good, "vni 1", "vni 4294967296", 1),
		strings.Replace(good, "8472", "65536", 1), strings.Replace(good, "24/64", "024/64", 1), strings.Replace(good, "24/64", "24", 1),
		strings.Replace(good, "outer 4", "outer 5", 1), strings.Replace(good, "masquerade yes", "masquerade maybe", 1), strings.Replace(good, " ", "  ", 1),
		strings.Replace(good, "ovl0", "", 1), strings.Replace(good, " port", "\nport", 1),
	} {
		if f, err := backend.ParseFilter(text, ""); err == nil || f != (backend.Filter{}) {
			t.Errorf("%q is read as %+v (%v)", text, f, err)
		}
	}
	for _, inside := range []string{" ", "10.5.0.0", "10.5.0.0/16 ", "10.5.0.0/16 10.6.0.0/16", "fd00:5::/48 10.5.0.0/16", "10.5.0.0/016"} {
		if f, err := backend.ParseFilter(good, inside); err == nil || f != (backend.Filter{}) {
			t.Errorf("untracked %q is read as %+v (%v)", inside, f, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		text, _ := drawFilter(t).Comments()
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		bent := text[:at] + rapid.StringMatching(`[ -~]`).Draw(t, "byte") + text[at+1:]
		if f, err := backend.ParseFilter(bent, ""); err == nil && f.String() != bent {
			t.Fatalf("%q is read as %q", bent, f)
		}
	})
}

// ofFilter returns the rows of a plan that are nf_tables'.
func ofFilter(s backend.State) string {
	rows := backend.State{}
	for _, e := range s {
		switch e.(type) {
		case backend.Table, backend.Member, backend.Pair, backend.PodAddr, backend.PodMAC, backend.PodPort, backend.Accept:
			rows.Add(e)
		}
	}
	return rows.String()
}

const filterOfTwo = "bridge ovl0 vni 1 port 8472 subnets 24/0 outer 4 guard full masquerade yes antispoof no"

// TestPlanOfTheFilter: each knob by itself, on a host with one peer.
func TestPlanOfTheFilter(t *testing.T) {
	two, own := three(t), "element inet overlayd outer4 { 192.0.2.7/32 }\nelement inet overlayd own4 { 10.5.34.0/24 }\n"
	two.Leases = two.Leases[:2]
	const host8 = "element inet overlayd hosts4 { 192.0.2.8 . 192.0.2.8/32 }\n"
	const subnet8 = "element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 }\n"
	const pool = "element inet overlayd pool4 { 10.5.0.0/16 }\n"
	table := func(old, changed string) string {
		return "table inet overlayd for " + strings.Replace(filterOfTwo, old, changed, 1) + "\n"
	}
	for _, c := range []struct {
		claim  string
		change func(*backend.Host, *subnet.Snapshot)
		want   string
	}{
		{"guard full", func(*backend.Host, *subnet.Snapshot) {}, table("", "") + host8 + own + pool + subnet8},
		{"guard vtep", func(h *backend.Host, _ *subnet.Snapshot) { h.Guard = backend.GuardVTEP },
			table("guard full", "guard vtep") + own + pool + "element inet overlayd vteps4 { 192.0.2.8/32 }\n"},
		{"guard off", func(h *backend.Host, _ *subnet.Snapshot) { h.Guard = backend.GuardOff }, table("guard full", "guard off") + own + pool},
		{"no masquerade", func(h *backend.Host, _ *subnet.Snapshot) { h.Masquerade = false },
			table("masquerade yes", "masquerade no") + host8 + own + pool + subnet8},
		{"exclude", func(h *backend.Host, _ *subnet.Snapshot) {
			h.Exclude = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		}, table("", "") + "element inet overlayd exclude4 { 198.51.100.0/24 }\nelement inet overlayd exclude6 { 2001:db8::/32 }\n" + host8 + own + pool + subnet8},
		{"no bridge", func(h *backend.Host, _ *subnet.Snapshot) { h.Bridge, h.AntiSpoof = "", true }, table("bridge ovl0", "bridge none") + host8 + own + pool + subnet8},
		{"alone: an empty set of peers lets nobody in", func(_ *backend.Host, s *subnet.Snapshot) { s.Leases = s.Leases[:1] }, table("", "") + own + pool},
		{"a peer of the other family cannot send", func(_ *backend.Host, s *subnet.Snapshot) { s.Leases[1].PublicIP = netip.MustParseAddr("2001:db8::8") },
			table("", "") + own + pool},
		{"a peer of the other family cannot send, by VTEP", func(h *backend.Host, s *subnet.Snapshot) {
			h.Guard, s.Leases[1].PublicIP = backend.GuardVTEP, netip.MustParseAddr("2001:db8::8")
		}, table("guard full", "guard vtep") + own + pool},
		{"what covers the host's own is nobody's source", func(h *backend.Host, _ *subnet.Snapshot) {
			h.Connected = append(h.Connected, netip.MustParsePrefix("10.5.35.128/25"))
		}, table("", "") + host8 + own + pool},
		{"untracked", func(h *backend.Host, _ *subnet.Snapshot) { h.Untracked = true },
			strings.TrimSuffix(table("", ""), "\n") + " untracked 10.5.0.0/16\n" + host8 + own + pool + subnet8},
		{"untracked, and no masquerade", func(h *backend.Host, _ *subnet.Snapshot) { h.Untracked, h.Masquerade = true, false },
			table("masquerade yes", "masquerade no") + host8 + own + pool + subnet8},
		{"another VNI and port", func(_ *backend.Host, s *subnet.Snapshot) { s.Config.Backend.VNI, s.Config.Backend.Port = 7, 4789 },
			table("vni 1 port 8472", "vni 7 port 4789") + host8 + own + pool + subnet8},
	} {
		t.Run(c.claim, func(t *testing.T) {
			h, s := host(), two
			h.AntiSpoof = false
			s.Leases = append([]subnet.Lease(nil), two.Leases...)
			c.change(&h, &s)
			checkText(t, ofFilter(backend.Plan(h, s)), c.want)
		})
	}
}

// An inner IPv6 source over IPv4, and the other way round: the peer's own public address is an inner source only where
// the network has that family.
func TestPairsOfMixedFamilies(t *testing.T) {
	six := subnet.Snapshot{Config: parse(t, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`), Leases: []subnet.Lease{
		lease("h7", "192.0.2.7", "fd00:5:0:22::/64"), lease("h8", "192.0.2.8", "fd00:5:0:23::/64"),
	}}
	h := host()
	h.AntiSpoof = false
	checkPairs := func(s subnet.Snapshot, want string) {
		t.Helper()
		var got strings.Builder
		for _, e := range backend.Plan(h, s).Entries() {
			if p, ok := e.(backend.Pair); ok {
				got.WriteString(p.String() + "\n")
			}
		}
		checkText(t, got.String(), want)
	}
	checkPairs(six, "element inet overlayd subnets6 { 192.0.2.8 . fd00:5:0:23::/64 }\n")
	h.Uplink.Addr = netip.MustParseAddr("2001:db8::7")
	six.Leases = []subnet.Lease{lease("h7", "2001:db8::7", "fd00:5:0:22::/64"), lease("h8", "2001:db8::8", "fd00:5:0:23::/64")}
	checkPairs(six, "element inet overlayd hosts6 { 2001:db8::8 . 2001:db8::8/128 }\nelement inet overlayd subnets6 { 2001:db8::8 . fd00:5:0:23::/64 }\n")
	checkPairs(subnet.Snapshot{Config: parse(t, four), Leases: []subnet.Lease{lease("h7", "2001:db8::7", "10.5.34.0/24"), lease("h8", "2001:db8::8", "10.5.35.0/24")}},
		"element inet overlayd subnets4 { 2001:db8::8 . 10.5.35.0/24 }\n")
}

// TestPairsAreWhereRulesLookForThem: a rule takes the first whole bytes of a source, as many as the network's subnets have.
func TestPairsAreWhereRulesLookForThem(t *testing.T) {
	for _, c := range []struct{ config, own, peer, set string }{
		{`{"Network": "10.0.0.0/8"}`, "10.5.34.0/24", "10.5.35.0/24", backend.SetSubnets},
		{`{"Network": "10.0.0.0/8", "SubnetLen": 16}`, "10.5.0.0/16", "10.6.0.0/16", backend.SetSubnets},
		{`{"Network": "10.0.0.0/8", "SubnetLen": 16}`, "10.5.0.0/16", "10.6.35.0/24", backend.SetPeers},
		{`{"Network": "10.0.0.0/8", "SubnetLen": 26}`, "10.5.34.0/26", "10.5.35.64/26", backend.SetPeers},
		{`{"Network": "10.0.0.0/8", "SubnetLen": 26}`, "10.5.34.0/26", "10.6.35.0/24", backend.SetPeers},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/32", "IPv6SubnetLen": 56}`, "fd00:5:1::/56", "fd00:5:2::/56", backend.SetSubnets},
		{`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetLen": 57}`, "fd00:5:0:100::/57", "fd00:5:0:200::/57", backend.SetPeers},
	} {
		s := subnet.Snapshot{Config: parse(t, c.config), Leases: []subnet.Lease{lease("h7", "192.0.2.7", c.own), lease("h8", "192.0.2.8", c.peer)}}
		sets := map[netip.Prefix]string{}
		for _, e := range backend.Plan(host(), s).Entries() {
			if p, ok := e.(backend.Pair); ok {
				sets[p.Inner] = p.Set
			}
		}
		peer := netip.MustParsePrefix(c.peer)
		want := map[netip.Prefix]string{peer: c.set}
		if peer.Addr().Is4() {
			want[netip.MustParsePrefix("192.0.2.8/32")] = backend.SetHosts
		}
		if !maps.Equal(sets, want) {
			t.Errorf("%s, a peer with %s: in %v, want %v", c.config, c.peer, sets, want)
		}
	}
}

// TestASourceBelongsToOnePeer, whatever the store says: no two pairs of one plan have an address in common.
func TestASourceBelongsToOnePeer(t *testing.T) {
	config := parse(t, `{"Network": "10.5.0.0/16", "SubnetLen": 24}`)
	rapid.Check(t, func(t *rapid.T) {
		leases := []subnet.Lease{lease("h7", "192.0.2.7", "10.5.34.0/24")}
		for i := range rapid.IntRange(0, 6).Draw(t, "peers") {
			public := rapid.SampledFrom([]string{"192.0.2.7", "192.0.2.8", "192.0.2.9", "10.5.35.9", "10.5.34.9", "198.51.100.9", "2001:db8::9"}).Draw(t, "public")
			bits := rapid.SampledFrom([]string{"10.5.34.0/24", "10.5.35.0/24", "10.5.34.0/23", "10.5.35.128/25", "10.5.36.0/24", "192.0.2.0/24"}).Draw(t, "subnet")
			l := lease("h"+string(rune('0'+i)), public, bits)
			l.Created = int64(i + 2)
			leases = append(leases, l)
		}
		leases[0].Created = 1
		rows := backend.Plan(host(), subnet.Vet(1, config, leases, nil, nil))
		var pairs []backend.Pair
		for _, e := range rows.Entries() {
			if p, ok := e.(backend.Pair); ok {
				pairs = append(pairs, p)
			}
		}
		for i, p := range pairs {
			for _, q := range pairs[:i] {
				if p.Inner.Overlaps(q.Inner) {
					t.Fatalf("both let in:\n%s\n%s", p, q)
				}
			}
			if p.Outer == host().Uplink.Addr || p.Inner.Overlaps(netip.MustParsePrefix("10.5.34.0/24")) {
				t.Fatalf("a peer may be us: %s", p)
			}
		}
	})
}

// One change of a peer's address is one alteration: there is no moment in which two hosts may send its source, and none
// in which nobody may.
func TestAMovedPeersPairIsAltered(t *testing.T) {
	moved := three(t)
	moved.Leases[1].PublicIP = netip.MustParseAddr("192.0.2.88")
	altered := 0
	for _, c := range backend.Diff(backend.Plan(host(), moved), backend.Plan(host(), three(t))) {
		p, ok := c.Row().(backend.Pair)
		if !ok || p.Inner.IsSingleIP() {
			continue
		}
		if altered++; c.Old == nil || c.New == nil {
			t.Errorf("not altered but %s", c)
		}
	}
	if altered != 1 {
		t.Errorf("%d pairs altered, want one", altered)
	}
	// A subnet that another host takes over is the same: one source, one key.
	taken := three(t)
	taken.Leases[1].Node, taken.Leases[1].PublicIP = "h6", netip.MustParseAddr("192.0.2.6")
	k := backendtest.NewFake(host())
	k.Plant(backend.Plan(host(), three(t)).Entries()...)
	k.Plant(backend.Plan(host(), taken).Entries()...)
	for _, e := range k.State() {
		if p, ok := e.(backend.Pair); ok && p.Inner == taken.Leases[1].Subnet && p.Outer != taken.Leases[1].PublicIP {
			t.Errorf("the former holder's pair is there: %s", p)
		}
	}
}

func TestPlanPutsAcceptsIntoChainsOfIptables(t *testing.T) {
	ours := func(s backend.State) string {
		var b strings.Builder
		for _, e := range s.Entries() {
			if a, ok := e.(backend.Accept); ok {
				b.WriteString(a.String() + "\n")
			}
		}
		return b.String()
	}
	h := host()
	h.Drops = []backend.Chain{
		{Family: "ip", Table: "filter", Name: "FORWARD"},
		{Family: "ip6", Table: "filter", Name: "DOCKER-USER"},
	}
	checkText(t, ours(backend.Plan(h, three(t))), `rule ip filter FORWARD iifname ovl0 accept comment overlayd
rule ip filter FORWARD oifname ovl0 accept comment overlayd
rule ip6 filter DOCKER-USER iifname ovl0 accept comment overlayd
rule ip6 filter DOCKER-USER oifname ovl0 accept comment overlayd
`)
	h.Bridge = ""
	checkText(t, ours(backend.Plan(h, three(t))), "")
}
