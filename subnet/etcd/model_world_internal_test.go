package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// cast are the hosts of every history: their names and addresses.
var cast = map[string][2]string{
	"a": {"a", "192.0.2.1"}, "b": {"b", "192.0.2.2"}, "c": {"c", "192.0.2.3"}, "d": {"d", "192.0.2.4"},
	"twin":  {"a", "192.0.2.5"}, // another host with a's name
	"rival": {"e", "192.0.2.2"}, // another host with b's address
}

// bill is the order in which they are taken when all do something. The last two are not there at the end.
var bill = []string{"a", "b", "c", "d", "twin", "rival"}

const (
	claimTTL = 3 * time.Minute // of the hosts' terms; the sign of life has AliveTTL
	beat     = 25 * time.Second
)

// configs are the network's configurations by name. Every pool but the narrow one has room for all.
var configs = map[string]string{
	"wide":   `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.6.0"}`,
	"narrow": `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`,
	"moved":  `{"Network":"10.6.0.0/16","SubnetMin":"10.6.1.0","SubnetMax":"10.6.6.0"}`,
	"coarse": `{"Network":"10.5.0.0/16","SubnetLen":23,"SubnetMin":"10.5.2.0","SubnetMax":"10.5.14.0"}`,
	"vni":    `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.6.0","Backend":{"Type":"vxlan","VNI":2}}`,
	"dual": `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.6.0",` +
		`"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:6::"}`,
}

// arena is an etcd, modelled or real, and the disasters that can befall it.
type arena struct {
	ctx    context.Context
	kv     pb.KVClient
	lease  pb.LeaseClient
	wipe   func()
	backup func() (restore func())
}

// modelArena has revisions that go back when the store is wiped or restored.
func modelArena(t testing.TB) arena {
	f := newFakeEtcd()
	return arena{
		ctx: t.Context(), kv: f, lease: f,
		wipe: func() { f.states, f.leases = newFakeEtcd().states, newFakeEtcd().leases },
		backup: func() func() {
			kept := f.copy()
			return func() { f.states, f.leases = kept.copy().states, kept.copy().leases }
		},
	}
}

// tester is what of a test the world needs: rapid has its own.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// world is etcd, its hosts and the time.
type world struct {
	t tester
	arena
	now    time.Duration
	hosts  map[string]*daemon
	lives  []*life  // of etcd leases, in the order of their grants
	late   []func() // requests under way
	settle time.Duration

	restore func()            // the store as it was saved
	last    contents          // the store as it was last seen
	held    []written         // the leases in it
	writers map[string]string // which host wrote a lease
	depth   int               // of steps in steps
	log     []string
}

// life is an etcd lease.
type life struct {
	id      int64
	ttl     time.Duration
	end     time.Duration
	by      *daemon
	excused bool // nobody can be blamed if nothing hangs on it: its holder was not told of it, or it was not given back
}

func newWorld(t tester, a arena, settle time.Duration) *world {
	w := &world{t: t, arena: a, hosts: map[string]*daemon{}, writers: map[string]string{}, last: contents{}, settle: settle}
	for id, who := range cast {
		w.hosts[id] = newDaemon(w, id, who[0], who[1])
	}
	w.configure("wide")
	return w
}

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n--- what happened\n%s\n--- the store\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"), w.text())
}

// text is every key of the store with its value.
func (w *world) text() string {
	var b strings.Builder
	for _, kv := range inRange(w.contents(), []byte("\x00"), []byte("\x00")) {
		fmt.Fprintf(&b, "%s %s\n", strings.TrimPrefix(string(kv.Key), testPrefix), kv.Value)
	}
	return b.String()
}

func (w *world) contents() contents {
	answer, err := w.kv.Range(w.ctx, &pb.RangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00")})
	w.must(err)
	state := contents{}
	for _, kv := range answer.Kvs {
		state[string(kv.Key)] = kv
	}
	return state
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, strings.Join(w.log, "\n"))
	}
}

// run plays a history and sees how it ends.
func (w *world) run(history []string) {
	for _, line := range history {
		w.take(parseStep(line))
	}
	w.end()
}

// take does one step, unless the host is in one already.
func (w *world) take(s step) {
	at := len(w.log)
	w.depth++
	w.log = append(w.log, fmt.Sprintf("%s%-40s ...", strings.Repeat("    ", w.depth-1), s))
	outcome := "busy"
	if s.who == "" {
		outcome = w.befall(s)
	} else if d := w.hosts[s.who]; !d.busy {
		d.busy, d.guess, d.faults, d.asked = true, false, s.faults, map[string]int{}
		outcome = fmt.Sprint(w.act(d, s))
		d.busy, d.faults = false, nil
		if d.dead {
			d.dead = false
			w.crash(d)
			outcome += ", dead"
		}
		w.believe()
		w.tidy(d)
	}
	w.depth--
	w.log[at] = fmt.Sprintf("%s%-40s %s", strings.Repeat("    ", w.depth), s, outcome)
	if d := w.hosts[s.who]; s.verb == "beat" {
		if outcome == d.said {
			w.log = w.log[:at] // nothing new
		}
		d.said = outcome
	}
}

func (s step) String() string {
	return strings.Join(slices.DeleteFunc([]string{s.who, s.verb, s.arg, faultWords(s.faults)}, func(x string) bool { return x == "" }), " ")
}

func faultWords(all []fault) string {
	var words []string
	for _, f := range all {
		words = append(words, fmt.Sprintf("/ %s %d %s", f.kind, f.nth, f.how))
		for i, other := range f.meanwhile {
			words = append(words, strings.Repeat(",", min(i, 1))+other.String())
		}
	}
	return strings.Join(words, " ")
}

// befall does what no host does.
func (w *world) befall(s step) string {
	switch s.verb {
	case "wait": // nobody does anything
		d, err := time.ParseDuration(s.arg)
		w.must(err)
		w.pass(d)
	case "run": // every daemon that runs does what Keep does
		d, err := time.ParseDuration(s.arg)
		w.must(err)
		for end := w.now + d; w.now < end; {
			w.pass(beat)
			for _, id := range bill {
				w.take(step{who: id, verb: "beat"})
			}
		}
	case "deliver":
		for _, arrive := range w.late {
			arrive()
		}
		w.late = nil
	case "config":
		w.configure(s.arg)
	case "flannel": // a host that runs it takes a subnet. It knows nothing of what is beside the leases
		w.flannel(s.arg)
	case "wipe":
		w.wipe()
		w.lives = nil
		w.disaster()
		w.configure("wide")
	case "save":
		store, lives, writers := w.backup(), slices.Clone(w.lives), maps.Clone(w.writers)
		w.restore = func() {
			store()
			w.lives, w.writers = nil, maps.Clone(writers)
			for _, l := range lives {
				w.lives = append(w.lives, &life{id: l.id, ttl: l.ttl, end: w.now + l.ttl, by: l.by, excused: true})
			}
		}
	case "restore":
		if w.restore != nil {
			w.restore()
			w.disaster()
		}
	default:
		panic("history: " + s.verb)
	}
	return w.now.String()
}

// disaster says that the store has forgotten things.
func (w *world) disaster() {
	for _, d := range w.hosts {
		d.void = true
	}
	w.last = w.contents()
	w.held = w.leases(w.last)
}

func (w *world) configure(name string) {
	_, err := w.kv.Put(w.ctx, &pb.PutRequest{Key: []byte(testPrefix + "/config"), Value: []byte(configs[name])})
	w.must(err)
	w.observe(nil, "the admin")
}

// flannel makes the lease that a host running flannel would make: by its own key alone, if that is free.
func (w *world) flannel(third string) {
	key := testPrefix + "/subnets/10.5." + third + ".0-24"
	text := encode(value{PublicIP: "192.0.2.10" + third, BackendType: "vxlan", BackendData: &backendData{VNI: 1, VtepMAC: subnet.VTEPMAC(1, "flannel"+third)}})
	answer, err := clientv3.NewKVFromKVClient(w.kv, nil).Txn(w.ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, text)).Commit()
	w.must(err)
	if answer.Succeeded {
		w.writers[key] = "flannel"
	}
	w.observe(nil, "flannel")
}

// pass lets time pass: etcd leases end.
func (w *world) pass(d time.Duration) {
	w.now += d
	over := slices.DeleteFunc(slices.Clone(w.lives), func(l *life) bool { return l.end > w.now })
	slices.SortStableFunc(over, func(a, b *life) int { return cmp.Compare(a.end, b.end) })
	for _, l := range over {
		_, _ = w.lease.LeaseRevoke(w.ctx, &pb.LeaseRevokeRequest{ID: l.id})
		w.forget(l.id)
		w.observe(nil, "the end of an etcd lease")
	}
	w.believe()
}

func (w *world) granted(by *daemon, id, seconds int64) {
	ttl := time.Duration(seconds) * time.Second
	w.lives = append(w.lives, &life{id: id, ttl: ttl, end: w.now + ttl, by: by, excused: true})
}

func (w *world) lifeOf(id int64) *life {
	for _, l := range w.lives {
		if l.id == id {
			return l
		}
	}
	return nil
}

func (w *world) forget(id int64) {
	w.lives = slices.DeleteFunc(w.lives, func(l *life) bool { return l.id == id })
}

func (w *world) renew(r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	stream, err := w.lease.LeaseKeepAlive(w.ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(r); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if l := w.lifeOf(r.ID); err == nil && answer.TTL > 0 && l != nil {
		l.end = w.now + l.ttl
	}
	return answer, errors.Join(err, stream.CloseSend())
}

func (w *world) terms(d *daemon) Terms {
	return Terms{
		TTL: claimTTL, Boot: fmt.Sprintf("boot %d of %s", d.boot, d.id), Settle: w.settle,
		Now: func() time.Duration { return w.now + d.leap },
	}
}

// want is the lease that a daemon asks for, with the subnets that its node file remembers.
func (d *daemon) want() subnet.Lease {
	return subnet.Lease{Node: d.name, PublicIP: d.ip(), MAC: subnet.VTEPMAC(1, d.name), Backend: "vxlan", Subnet: d.saved.Subnet, Subnet6: d.saved.Subnet6}
}

// addressOf completes the last byte of an address.
func addressOf(last string) netip.Addr { return netip.MustParseAddr("192.0.2." + last) }
