package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

const below = "/overlayd/network/"

// foreign is another node's lease of a subnet, as its value in etcd.
const foreign = `{"PublicIP":"192.0.2.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"},"Node":"h9"}`

// hold returns a holder of h1's lease in a network of three subnets, its witness, and a client that meddles.
func hold(t *testing.T, o *options) (*holder, *clientv3.Client) {
	t.Helper()
	etcdServer(t)
	store, err := etcd.Open(etcd.Options{Endpoints: []string{etcdURL}, Prefix: strings.TrimSuffix(below, "/")})
	must(t, err)
	t.Cleanup(func() { _ = store.Close() })
	must(t, store.Configure(t.Context(), `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.34.0", "SubnetMax": "10.5.36.0"}`))
	must(t, store.Found(t.Context()))
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdURL}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	o.node, o.bridge, o.runDir, o.leaseTTL = "h1", "ovl0", t.TempDir(), etcd.MinTTL
	w := newWitness(o, uplink(1500))
	want := subnet.Lease{Node: "h1", PublicIP: netip.MustParseAddr("192.0.2.7"), MAC: subnet.VTEPMAC(1, "h1"), Backend: "vxlan"}
	return &holder{options: o, witness: w, store: store, want: want, tellAgain: func() {}, kick: func() {}}, c
}

// saved is a network in which h1 had 10.5.35.0/24.
func saved() subnet.Snapshot {
	return subnet.Snapshot{Leases: []subnet.Lease{{Node: "h1", Subnet: netip.MustParsePrefix("10.5.35.0/24")}}}
}

// withPod is a host that has a pod with the address.
func withPod(addr string) backend.Host {
	h := uplink(1500)
	h.Pods = []backend.Pod{{Link: "veth1", Addrs: []netip.Addr{netip.MustParseAddr(addr)}}}
	return h
}

func TestAHolderTakesBackWhatItRemembers(t *testing.T) {
	for name, test := range map[string]struct {
		saved subnet.Snapshot
		host  backend.Host
		taken bool // by somebody else
		allow bool // --allow-resubnet
		want  string
	}{
		"free, and in use":                     {saved(), withPod("10.5.35.9"), false, false, "10.5.35.0/24"},
		"free, and not in use":                 {saved(), uplink(1500), false, false, "10.5.35.0/24"},
		"taken, and not in use":                {saved(), uplink(1500), true, false, "another"},
		"taken, and in use":                    {saved(), withPod("10.5.35.9"), true, false, "lost"},
		"taken, in use, and another may do":    {saved(), withPod("10.5.35.9"), true, true, "another"},
		"taken, and a pod of an older subnet":  {saved(), withPod("10.5.36.9"), true, false, "another"},
		"nothing is remembered":                {subnet.Snapshot{}, withPod("10.5.35.9"), true, false, "another"},
		"nothing is remembered in a free pool": {subnet.Snapshot{}, uplink(1500), false, false, "any"},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := hold(t, &options{allowResubnet: test.allow})
			if test.taken {
				_, err := c.Put(t.Context(), below+"subnets/10.5.35.0-24", foreign)
				must(t, err)
			}
			must(t, h.take(t.Context(), test.saved, test.host))
			got, lost := h.claim.Lease().Subnet, h.witness.isFenced()
			if another := got.IsValid() && got.String() != "10.5.35.0/24"; lost != (test.want == "lost") || test.want == "another" && !another ||
				strings.HasPrefix(test.want, "10.") && got.String() != test.want || !got.IsValid() {
				t.Errorf("got %s, lost: %t; want %s", got, lost, test.want)
			}
			if r := h.witness.report(); lost && !strings.Contains(strings.Join(r.NotReady, "\n"), "10.5.35.0/24 of h9 via 192.0.2.66") {
				t.Errorf("not ready: %q, want who has it", r.NotReady)
			}
		})
	}
}

// keeping runs keep until the test ends.
func keeping(t *testing.T, h *holder) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.keep(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("keep ends with %v, want %v", err, context.Canceled)
		}
	})
}

// until waits for a state of the witness.
func until(t *testing.T, what string, w *witness, reached func(report) bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); !reached(w.report()); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not %s: %+v", what, w.report())
		}
	}
}

func fenced(r report) bool {
	return strings.Contains(strings.Join(r.NotReady, "\n"), "somebody else's")
}

// TestALostSubnetComesBackOrIsGivenUp: while a pod is in it the host waits for it, then it takes another.
func TestALostSubnetComesBackOrIsGivenUp(t *testing.T) {
	h, c := hold(t, &options{})
	ctx, w := t.Context(), h.witness
	must(t, h.take(ctx, subnet.Snapshot{}, uplink(1500)))
	first := h.claim.Lease()
	inside := pass(w, 1500)
	inside.Status.Host = withPod(subnet.Addr(first.Subnet, 9).String())
	w.passed(inside)
	keeping(t, h)
	key := below + "subnets/" + strings.ReplaceAll(first.Subnet.String(), "/", "-")
	_, err := c.Put(ctx, key, foreign)
	must(t, err)
	until(t, "fenced", w, fenced)
	if n := w.own(subnet.Snapshot{Leases: []subnet.Lease{{Node: "h2", Subnet: netip.MustParsePrefix("10.5.99.0/24")}}}); len(n.Leases) != 1 || n.Leases[0].Node != "h1" {
		t.Errorf("cut off, the network is %v: want this host alone", n.Leases)
	}
	if r := w.report(); !r.StoreUp {
		t.Errorf("the store is said to be down: %q", r.Degraded)
	}
	text, err := os.ReadFile(filepath.Join(h.options.runDir, nodeFileName))
	must(t, err)
	var node subnet.NodeFile
	must(t, json.Unmarshal(text, &node))
	if err := node.Usable(bootID(), int64(bootTime())); err == nil {
		t.Errorf("a pod could be attached:\n%s", text)
	}

	_, err = c.Delete(ctx, key)
	must(t, err)
	until(t, "back", w, func(r report) bool { return !fenced(r) && r.Subnets[0] == first.Subnet })

	_, err = c.Put(ctx, key, foreign)
	must(t, err)
	until(t, "fenced again", w, fenced)
	w.passed(pass(w, 1500)) // the pod has gone
	until(t, "elsewhere", w, func(r report) bool { return !fenced(r) && r.Subnets[0] != first.Subnet })
}
