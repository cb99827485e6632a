package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// ready is a report without anything to complain of. It belongs in a bubble, where time stands still.
func ready() report {
	return report{
		Release: "v1.2.3", Node: "h1", PID: 4711, Started: time.Now().Add(-90 * time.Minute), Ready: true,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.5.34.0/24"), netip.MustParsePrefix("fd00:5:22::/64")},
		PublicIP: netip.MustParseAddr("192.0.2.7"), LeaseEnd: 86321.5,
		Opened: []string{"ip filter DOCKER-USER"}, Uplink: "eth0", Local: netip.MustParseAddr("10.0.0.7"), VXLAN: "overlay.1", Bridge: "ovl0", MTU: 1450, Peers: 2, Pods: 3,
		Kernel: backend.Status{Revision: 42, Synced: true, Passes: 7, Made: 11, Rows: 19, Peers: 2, Took: 1234567 * time.Nanosecond},
	}
}

// notReady has something to complain of everywhere.
func notReady() report {
	r := ready()
	r.Ready, r.NotReady = false, []string{"the kernel differs from what is wanted", "since 12:00:00: subnet 10.5.34.0/24 is h9's"}
	r.Degraded = []string{"store, since 11:59:00: etcd http://192.0.2.1:2379: connection refused"}
	r.Bridge, r.Subnets = "", r.Subnets[:1]
	r.Kernel.Synced = false
	r.Kernel.Faults = []backend.Fault{{
		Change: "+ route 10.5.2.0/24 via 10.5.2.0 dev overlay.1", Since: time.Date(2026, 1, 2, 11, 58, 0, 0, time.UTC), Why: "operation not permitted",
	}}
	r.SkippedBy = map[subnet.Reason]int{"unreadable": mostSkipped + 2}
	for i := range mostSkipped + 2 {
		r.Skipped = append(r.Skipped, subnet.Skipped{Key: fmt.Sprintf("10.5.%d.0-24", i), Reason: "unreadable", Detail: "no JSON"})
	}
	return r
}

// printed is what status shows of a report that came over the socket.
func printed(t *testing.T, make func() report) string {
	t.Helper()
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) { must(t, make().print(&out)) })
	return out.String()
}

func TestStatusIsForPeople(t *testing.T) {
	golden(t, "status-ready.txt", printed(t, ready))
	golden(t, "status-not-ready.txt", printed(t, notReady))
}

func TestALeaseThatEndedIsNotSaidToLast(t *testing.T) {
	got := printed(t, func() report {
		r := notReady()
		r.LeaseEnd, r.Skipped, r.SkippedBy = -300, nil, nil
		return r
	})
	if strings.Contains(got, "ours for another -") {
		t.Errorf("the report says\n%s\nwant that the lease ended 5m0s ago", got)
	}
}

func TestADaemonWithoutALeaseShowsNoInvalidAddress(t *testing.T) {
	w := newWitness(&options{node: "h1"}, backend.Host{Uplink: backend.Uplink{Name: "eth0", Addr: netip.MustParseAddr("10.0.0.7")}})
	var out bytes.Buffer
	must(t, w.report().print(&out))
	if strings.Contains(out.String(), "invalid") || !strings.Contains(out.String(), "no lease yet") {
		t.Errorf("the report says\n%s\nwant that there is no lease yet, and no address", out.String())
	}
}

func TestStatusOfNoDaemonSaysHowToStartOne(t *testing.T) {
	dir := t.TempDir()
	says(t, []string{"status", "--run-dir", dir}, noEnv, "no overlayd answers at "+dir+"/overlayd.sock", "systemctl start overlayd")
	staleSocket(t, dir)
	says(t, []string{"status", "--run-dir", dir}, noEnv, "no overlayd answers at "+dir+"/overlayd.sock", "systemctl start overlayd")
}

func TestReportsOfTheSameStateAreTheSame(t *testing.T) {
	w := newWitness(&options{node: "h1"}, backend.Host{})
	w.trouble(errors.New("connection refused"))
	w.files.set(errors.New("no space left on device"))
	first := strings.Join(w.report().Degraded, "\n")
	for range 100 {
		if got := strings.Join(w.report().Degraded, "\n"); got != first {
			t.Fatalf("degraded is\n%s\nand then\n%s", first, got)
		}
	}
}
