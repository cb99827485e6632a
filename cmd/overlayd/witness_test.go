package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// uplink is a host whose uplink has the given MTU.
func uplink(mtu int) backend.Host {
	return backend.Host{Node: "h1", VXLAN: "overlay.1", Bridge: "ovl0", Uplink: backend.Uplink{Name: "eth0", Addr: netip.MustParseAddr("192.0.2.7"), MTU: mtu}}
}

// pass is one that found nothing to do on such a host.
func pass(w *witness, mtu int) backend.Pass {
	l, _, _ := w.lease()
	return backend.Pass{Status: backend.Status{Synced: true, Passes: 1, Rows: 3, Peers: 2, Host: uplink(mtu), Subnets: l.Subnets()}}
}

// holding returns a witness with a real lease of 10.5.0.0/16, before the first pass.
func holding(t *testing.T) *witness {
	t.Helper()
	etcdServer(t)
	store, err := etcd.Open(etcd.Options{Endpoints: []string{etcdURL}, Prefix: "/overlayd/network"})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	must(t, store.Configure(t.Context(), `{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`))
	must(t, store.Found(t.Context()))
	o := &options{node: "h1", bridge: "ovl0", runDir: t.TempDir(), leaseTTL: time.Minute}
	claim, err := store.Claim(t.Context(), subnet.Lease{Node: "h1", PublicIP: netip.MustParseAddr("192.0.2.7"), MAC: subnet.VTEPMAC(1, "h1"), Backend: "vxlan"}, terms(o))
	must(t, err)
	w := newWitness(o, uplink(1500))
	w.claimed(claim)
	return w
}

func TestReadinessFollowsTheKernelAndTheLeaseNotTheStore(t *testing.T) {
	w := holding(t)
	dir := w.options.runDir
	serving(t, dir, w)
	check := func(what string, code int, notReady, degraded string) {
		t.Helper()
		got, r := readyz(t, dir)
		if got != code || r.Ready != (code == http.StatusOK) || !strings.Contains(strings.Join(r.NotReady, "\n"), notReady) || (notReady == "") != (len(r.NotReady) == 0) {
			t.Errorf("%s: /readyz is %d %+v, want %d and why: %s", what, got, r, code, notReady)
		}
		if !strings.Contains(strings.Join(r.Degraded, "\n"), degraded) || (degraded == "") != (len(r.Degraded) == 0) {
			t.Errorf("%s: degraded is %q, want %q", what, r.Degraded, degraded)
		}
	}
	const unavailable = http.StatusServiceUnavailable
	check("before the first pass", unavailable, "the kernel differs from what is wanted", "")
	w.passed(pass(w, 1500))
	check("in order", http.StatusOK, "", "")
	w.trouble(errors.New("connection refused"))
	check("without etcd", http.StatusOK, "", "connection refused")
	w.trouble(nil)
	check("with etcd again", http.StatusOK, "", "")
	broken := pass(w, 1500)
	broken.Status.Synced, broken.Status.Error = false, "read the kernel: no buffer space available"
	w.passed(broken)
	check("a pass that failed", unavailable, "no buffer space available", "")
	w.passed(pass(w, 1500))
	check("mended", http.StatusOK, "", "")
	w.lost(w.claim.Lease(), fmt.Errorf("%w: h9 has it", etcd.ErrLost))
	w.passed(pass(w, 1500))
	check("fenced", unavailable, "h9 has it", "")
}

func TestTheNodeFileTellsThePluginAllItNeeds(t *testing.T) {
	w := holding(t)
	dir := w.options.runDir
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("before the first pass there are %v, %v; want nothing", files, err)
	}
	w.passed(pass(w, 1500))
	text, err := os.ReadFile(filepath.Join(dir, nodeFileName))
	must(t, err)
	node, err := subnet.ParseNodeFile(text)
	must(t, err)
	must(t, node.Usable(bootID(), int64(bootTime())))
	if err := node.Usable(bootID(), int64(bootTime()+time.Minute)); err == nil {
		t.Errorf("the file is usable for longer than the lease:\n%s", text)
	}
	lease := w.claim.Lease()
	if node.Node != "h1" || node.Bridge != "ovl0" || node.MTU != 1450 || !slices.Equal(node.Subnets, lease.Subnets()) || len(node.Gateways) != 2 {
		t.Errorf("the file is\n%s\nwant node h1, bridge ovl0, MTU 1450, subnets %v with a gateway each", text, lease.Subnets())
	}
	env, err := os.ReadFile(filepath.Join(dir, subnetEnvName))
	must(t, err)
	if string(env) != string(node.SubnetEnv()) {
		t.Errorf("subnet.env is\n%s\nwant\n%s", env, node.SubnetEnv())
	}
}

func TestReadersSeeTheOldFilesOrTheNew(t *testing.T) {
	w := holding(t)
	dir := w.options.runDir
	w.passed(pass(w, 1500))
	stop, seen := make(chan struct{}), map[int]bool{}
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			text, err := os.ReadFile(filepath.Join(dir, nodeFileName))
			if err == nil {
				var node subnet.NodeFile
				node, err = subnet.ParseNodeFile(text)
				seen[node.MTU] = true
			}
			if err != nil {
				t.Errorf("a reader sees %q: %v", text, err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range 200 {
		w.passed(pass(w, 1500-i%2*100))
	}
	close(stop)
	reader.Wait()
	for mtu := range seen {
		if mtu != 1450 && mtu != 1350 {
			t.Errorf("a reader saw the MTU %d, which was never written", mtu)
		}
	}
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != 2 {
		t.Errorf("left are %v, want the two files alone", files)
	}
}

func TestANodeFileThatCannotBeWrittenIsToldAndTriedAgain(t *testing.T) {
	w := holding(t)
	dir := w.options.runDir
	w.options.runDir = filepath.Join(dir, "later")
	w.passed(pass(w, 1500))
	if r := w.report(); !r.Ready || len(r.Degraded) != 1 || !strings.Contains(r.Degraded[0], "node file") || !strings.Contains(r.Degraded[0], w.options.runDir) {
		t.Errorf("ready %v, degraded %q: want ready, and what is wrong with the node file in %s", r.Ready, r.Degraded, w.options.runDir)
	}
	must(t, os.Mkdir(w.options.runDir, 0o755))
	w.renewed()
	if r := w.report(); len(r.Degraded) > 0 {
		t.Errorf("degraded is %q, want nothing", r.Degraded)
	}
	if _, err := os.Stat(filepath.Join(w.options.runDir, nodeFileName)); err != nil {
		t.Error(err)
	}
}

// TestAFloodOfJunkKeysIsAFewLinesOfLog: what a stranger writes must not fill the disk.
func TestAFloodOfJunkKeysIsAFewLinesOfLog(t *testing.T) {
	var log strings.Builder
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	klog.SetOutputBySeverity("WARNING", &log) // klog tells each severity's output what the graver ones hear
	t.Cleanup(func() { klog.SetOutput(io.Discard); klog.LogToStderr(true) })
	var n subnet.Snapshot
	for i := range 1000 {
		n.Skipped = append(n.Skipped, subnet.Skipped{Key: fmt.Sprintf("junk%d", i), Reason: subnet.ReasonKey})
	}
	w := newWitness(&options{}, backend.Host{})
	w.heard(n)
	w.heard(n)
	klog.Flush()
	if lines := strings.Count(log.String(), "skipped "); lines != most+1 || !strings.Contains(log.String(), "and 980 more") {
		t.Errorf("%d lines, want %d:\n%s", lines, most+1, log.String())
	}
}

// TestNoAddressIsNoVTEP: a lease of one family has none of the other, and the kernel tells of neighbours without one.
func TestNoAddressIsNoVTEP(t *testing.T) {
	w := newWitness(&options{node: "h1"}, uplink(1500))
	w.last.Leases = []subnet.Lease{{Node: "h2", Subnet: netip.MustParsePrefix("10.5.35.0/24")}}
	for addr, want := range map[netip.Addr]bool{{}: false, netip.MustParseAddr("10.5.35.0"): true, netip.MustParseAddr("10.5.35.7"): false} {
		if got := w.isVTEP(addr); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
