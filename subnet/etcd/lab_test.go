package etcd_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

const (
	prefix   = "/overlayd/network"
	wide     = `{"Network":"10.5.0.0/16"}`
	patience = 2 * time.Minute // of a test that waits for something
	day      = 24 * time.Hour
)

// TestMain lets the tests run beside each other: nearly all of their time they wait. Too many servers at once starve each
// other on a busy machine: requests get no answer in time, and leases end.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	lastPort.Store(rand.Uint32N(20000)) // another package's tests may run beside these
	os.Exit(m.Run())
}

// network is one etcd server with one network in it.
type network struct {
	url    string
	dir    string // of the server's data
	server *embed.Etcd
	plain  *clientv3.Client // sees the keys as they are
}

// serve starts a server with the given configuration; an empty text leaves the network without one.
func serve(t *testing.T, config string) *network {
	t.Helper()
	n := &network{url: "http://" + freeAddr(t), dir: t.TempDir()}
	n.start(t, n.dir)
	t.Cleanup(func() { n.server.Close() })
	n.plain = dial(t, n.url)
	if config != "" {
		n.put(t, "/config", config)
	}
	return n
}

func (n *network) start(t *testing.T, dir string) {
	t.Helper()
	server, err := etcdtest.Serve(dir, n.url)
	must(t, err)
	n.server = server
}

var lastPort atomic.Uint32

// freeAddr returns an address that nothing listens at. Its port is not one that the kernel gives to connections: a server
// that ends and starts again must find its own still free.
func freeAddr(t *testing.T) string {
	t.Helper()
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+lastPort.Add(1)%20000)
		if l, err := net.Listen("tcp", addr); err == nil {
			must(t, l.Close())
			return addr
		}
	}
}

func dial(t *testing.T, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put writes a key below the prefix as a stranger would, and returns the revision.
func (n *network) put(t *testing.T, key, value string, o ...clientv3.OpOption) int64 {
	t.Helper()
	answer, err := n.plain.Put(t.Context(), prefix+key, value, o...)
	must(t, err)
	return answer.Header.Revision
}

// remove deletes keys below the prefix, as one revision.
func (n *network) remove(t *testing.T, keys ...string) {
	t.Helper()
	var ops []clientv3.Op
	for _, key := range keys {
		ops = append(ops, clientv3.OpDelete(prefix+key))
	}
	_, err := n.plain.Txn(t.Context()).Then(ops...).Commit()
	must(t, err)
}

func (n *network) revoke(t *testing.T, id clientv3.LeaseID) {
	t.Helper()
	_, err := n.plain.Revoke(t.Context(), id)
	must(t, err)
}

// get returns a key below the prefix; nil when there is none.
func (n *network) get(t *testing.T, key string) *mvccpb.KeyValue {
	t.Helper()
	answer, err := n.plain.Get(t.Context(), prefix+key)
	must(t, err)
	if len(answer.Kvs) == 0 {
		return nil
	}
	return answer.Kvs[0]
}

// leaseOf returns the etcd lease that a key below the prefix hangs on; 0 when there is none.
func (n *network) leaseOf(t *testing.T, key string) clientv3.LeaseID {
	t.Helper()
	return clientv3.LeaseID(n.get(t, key).GetLease())
}

// dump is every key of the whole store with its value, and the time for which its etcd lease was granted.
func (n *network) dump(t *testing.T) string {
	t.Helper()
	answer, err := n.plain.Get(t.Context(), "\x00", clientv3.WithFromKey())
	must(t, err)
	var b strings.Builder
	for _, kv := range answer.Kvs {
		fmt.Fprintf(&b, "%s %s", kv.Key, kv.Value)
		if kv.Lease != 0 {
			life, err := n.plain.TimeToLive(t.Context(), clientv3.LeaseID(kv.Lease))
			must(t, err)
			fmt.Fprintf(&b, " for %ds", life.GrantedTTL)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// textOf returns the value of a key below the prefix; empty when there is none.
func (n *network) textOf(t *testing.T, key string) string {
	t.Helper()
	if kv := n.get(t, key); kv != nil {
		return string(kv.Value)
	}
	return ""
}

// events are all changes below the prefix since the given revision.
func (n *network) events(t *testing.T, from int64) []*clientv3.Event {
	t.Helper()
	last := n.put(t, "/last", "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []*clientv3.Event
	for answer := range n.plain.Watch(ctx, prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(from)) {
		must(t, answer.Err())
		for _, e := range answer.Events {
			if e.Kv.ModRevision == last {
				return all
			}
			all = append(all, e)
		}
	}
	t.Fatalf("no event of revision %d", last)
	return nil
}

// etcdLeases is how many etcd leases exist, whatever hangs on them.
func (n *network) etcdLeases(t *testing.T) int {
	t.Helper()
	answer, err := n.plain.Leases(t.Context())
	must(t, err)
	return len(answer.Leases)
}

// host is a daemon's side of the store.
type host struct {
	store *etcd.Store
	want  subnet.Lease
	terms etcd.Terms
	told  *troubles
}

// host opens a store for a node. Its boot is named after its address.
func (n *network) host(t *testing.T, node, ip string) *host {
	t.Helper()
	return hostAt(t, n.url, prefix, node, ip)
}

func hostAt(t *testing.T, url, prefix, node, ip string) *host {
	t.Helper()
	return hostWith(t, node, ip, etcd.Options{Endpoints: []string{url}, Prefix: prefix})
}

// hostWith opens a store with options of its own.
func hostWith(t *testing.T, node, ip string, o etcd.Options) *host {
	t.Helper()
	told := &troubles{}
	o.Trouble = told.tell
	s, err := etcd.Open(o)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() }) // the context error of an unanswered request
	return &host{
		store: s, told: told, terms: etcd.Terms{TTL: day, Boot: "boot of " + ip, Now: now},
		want: subnet.Lease{Node: node, PublicIP: netip.MustParseAddr(ip), MAC: subnet.VTEPMAC(1, node), Backend: "vxlan"},
	}
}

var started = time.Now()

func now() time.Duration { return time.Since(started) }

// claim takes a lease that must come at once or soon.
func (h *host) claim(t *testing.T) *etcd.Claim {
	t.Helper()
	return h.claiming(t).await(t)
}

// attempt is a Claim under way.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}
	claim  *etcd.Claim
	err    error
}

func (h *host) claiming(t *testing.T) *attempt {
	ctx, cancel := context.WithCancel(t.Context())
	a := &attempt{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.claim, a.err = h.store.Claim(ctx, h.want, h.terms)
	}()
	t.Cleanup(func() { cancel(); <-a.done })
	return a
}

func (a *attempt) await(t *testing.T) *etcd.Claim {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(patience):
		t.Fatalf("no claim after %s", patience)
	}
	must(t, a.err)
	return a.claim
}

func (a *attempt) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// waits makes sure that the attempt has not ended.
func (a *attempt) waits(t *testing.T) {
	t.Helper()
	if a.ended() {
		t.Fatalf("claim ended with %v, want it to wait", a.err)
	}
}

// troubles is what Options.Trouble was told.
type troubles struct {
	mu   sync.Mutex
	told []error
}

func (r *troubles) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, err)
}

func (r *troubles) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.told...)
}

// await waits until an error of the given kind with all the words was told. A nil kind is any error.
func (r *troubles) await(t *testing.T, kind error, words ...string) {
	t.Helper()
	until(t, func() bool {
		for _, err := range r.all() {
			if err != nil && (kind == nil || errors.Is(err, kind)) && containsAll(err.Error(), words) {
				return true
			}
		}
		return false
	}, func() string { return fmt.Sprintf("told: %v\nwant: %v with %q", r.all(), kind, words) })
}

// awaitEnd waits until the last thing told is that all is well.
func (r *troubles) awaitEnd(t *testing.T) {
	t.Helper()
	until(t, func() bool {
		all := r.all()
		return len(all) > 0 && all[len(all)-1] == nil
	}, func() string { return fmt.Sprintf("told: %v\nwant: nil at the end", r.all()) })
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// until waits for a condition, and fails with the given words when it does not come.
func until(t *testing.T, reached func() bool, words func() string) {
	t.Helper()
	untilWithin(t, patience, reached, words)
}

func untilWithin(t *testing.T, d time.Duration, reached func() bool, words func() string) {
	t.Helper()
	end := time.After(d)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !reached() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("not within %s:\n%s", d, words())
		}
	}
}

// eventually waits until got returns the wanted text.
func eventually(t *testing.T, got func() string, want string) {
	t.Helper()
	until(t, func() bool { return got() == want }, func() string { return both(got(), want) })
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Fatal("\n" + both(got, want))
	}
}

func both(got, want string) string {
	return fmt.Sprintf("--- have\n%s\n--- want\n%s", strings.TrimSpace(got), strings.TrimSpace(want))
}

// describe is a snapshot in words: leases from the oldest on, then what was skipped.
func describe(s subnet.Snapshot) string {
	var b strings.Builder
	for _, l := range s.Leases {
		fmt.Fprintf(&b, "%s mac %s\n", l, l.MAC)
	}
	for _, k := range s.Skipped {
		fmt.Fprintf(&b, "skipped %s: %s\n", k.Key, k.Reason)
	}
	return b.String()
}

// sorted orders the lines of a text.
func sorted(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}
