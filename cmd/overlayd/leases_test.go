package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

func listed(node, p, ip string) subnet.Lease {
	return subnet.Lease{Node: node, Subnet: netip.MustParsePrefix(p), PublicIP: netip.MustParseAddr(ip), MAC: subnet.VTEPMAC(1, p), Backend: "vxlan"}
}

// TestRowsSayHowEachLeaseStands is the list in all its states, by subnet.
func TestRowsSayHowEachLeaseStands(t *testing.T) {
	const ttl = 24 * time.Hour
	live, silent, soon := listed("live", "10.5.9.0/24", "192.0.2.1"), listed("silent", "10.5.2.0/24", "192.0.2.2"), listed("soon", "10.5.3.0/24", "192.0.2.3")
	endless, flannel, kept := listed("endless", "10.5.4.0/24", "192.0.2.4"), listed("", "10.5.5.0/24", "192.0.2.5"), listed("kept", "10.5.6.0/24", "192.0.2.6")
	l := etcd.Listing{
		Snapshot: subnet.Snapshot{
			Leases: []subnet.Lease{live, silent, soon, endless, flannel, kept},
			Reserved: []subnet.Reservation{
				{Node: "kept", Subnet: kept.Subnet}, {Node: "later", Subnet: netip.MustParsePrefix("10.5.1.0/24")}, {Node: "live", Subnet: netip.MustParsePrefix("10.5.7.0/24")},
			},
		},
		Standing: map[string]etcd.Standing{
			live.String(): {Alive: true}, silent.String(): {Left: 3 * time.Hour}, soon.String(): {Left: 2 * time.Hour},
			endless.String(): {Endless: true}, flannel.String(): {Foreign: true, Left: time.Hour}, kept.String(): {Alive: true},
		},
	}
	var got strings.Builder
	for _, r := range leaseRows(l, ttl) {
		got.WriteString(r.Node + " " + words(r.Subnets) + " " + r.describe() + "\n")
	}
	const want = `later 10.5.1.0/24 reserved
silent 10.5.2.0/24 silent, ends in 3h0m0s
soon 10.5.3.0/24 silent, expires-soon, ends in 2h0m0s
endless 10.5.4.0/24 silent, endless
(flannel) 10.5.5.0/24 foreign, expires-soon, ends in 1h0m0s
kept 10.5.6.0/24 live, reserved
live 10.5.7.0/24 reserved
live 10.5.9.0/24 live
`
	if got.String() != want {
		t.Errorf("the rows are\n%s\nwant\n%s", got.String(), want)
	}
}

func TestLeasesRefusesWhatItCannotMean(t *testing.T) {
	for _, test := range []struct{ args, says string }{
		{"leases frob", `"leases frob": want: overlayd leases, overlayd leases reserve NODE SUBNET, or: overlayd leases release NODE`},
		{"leases reserve h1", "want: overlayd leases"},
		{"leases release", "want: overlayd leases"},
		{"leases reserve h1 10.5.1.0", "reserve 10.5.1.0: want a subnet such as 10.5.34.0/24"},
		{"leases release a/b", `node name "a/b"`},
	} {
		says(t, strings.Fields(test.args), noEnv, test.says)
	}
}

// TestReserveAndReleaseGoTogether is an admin at the command line, without any daemon.
func TestReserveAndReleaseGoTogether(t *testing.T) {
	w := holding(t) // h1
	own := w.claim.Lease()
	leases := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		must(t, run(t.Context(), append([]string{"leases", "--etcd-endpoints", etcdURL}, args...), noEnv, &out))
		return out.String()
	}
	same := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("it prints\n%s\nwant\n%s", got, want)
		}
	}
	same(leases("reserve", "h7", "10.5.70.0/24"), "reserved 10.5.70.0/24 for h7\n")
	same(leases("reserve", "h7", "10.5.71.0/24"), "reserved 10.5.71.0/24 for h7\nreleased its reservation of 10.5.70.0/24\n")
	same(leases("reserve", "h1", "10.5.72.0/24"), "reserved 10.5.72.0/24 for h1\nh1 has "+words(own.Subnets())+
		" now: it gets 10.5.72.0/24 after it was stopped, and: overlayd leases release h1 --only-lease\n")
	says(t, []string{"leases", "release", "h1", "--etcd-endpoints", etcdURL}, noEnv, "release h1", "runs", "192.0.2.7")

	var all struct{ Leases []leaseRow }
	must(t, json.Unmarshal([]byte(leases("--json")), &all))
	i := slices.IndexFunc(all.Leases, func(r leaseRow) bool { return r.Node == "h1" && r.PublicIP.IsValid() })
	if len(all.Leases) != 3 || i < 0 || !slices.Equal(all.Leases[i].State, []string{"live"}) {
		t.Errorf("the list is %+v, want h1's lease and two reservations", all.Leases)
	}
	same(leases("release", "h1", "--only-reservation"), "released the reservation of 10.5.72.0/24 for h1\n")
	same(leases("release", "h7"), "released the reservation of 10.5.71.0/24 for h7\n")
	same(leases("release", "h7"), "h7 has nothing to release\n")
}
