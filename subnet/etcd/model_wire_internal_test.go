package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet"
)

// daemon is one host: what of it is left when its daemon is not running, and the claim of the one that is.
type daemon struct {
	id, name string
	home     netip.Addr   // its address at first
	ips      []netip.Addr // all that it has had, the present one last
	boot     int
	leap     time.Duration // of its clock against the world's
	store    *Store
	saved    subnet.Lease // the node file; the zero Lease without one

	claim  *Claim
	held   bool // the claim has been taken, or is to be taken back and nothing else
	lost   bool // it was told [ErrLost] since
	back   bool // it is to be taken back, as Keep remembers that
	void   bool // the store was made to forget it, or its clock to lie: what it believes is not the algorithm's doing
	unsure bool // the outcome of a write is unknown

	busy      bool           // in a step
	guess     bool           // a write in it got no answer
	dead      bool           // it died in the step
	cut, deaf bool           // no request gets through; no answer comes back
	faults    []fault        // of the step
	asked     map[string]int // requests of the step, by kind
	said      string         // what came of the last beat
}

func (d *daemon) ip() netip.Addr { return d.ips[len(d.ips)-1] }

// fault is what happens to the nth request of a kind in a step.
type fault struct {
	kind      string // of request: see wire
	nth       int
	how       string
	meanwhile []step // other hosts' steps that come before it
}

// The ways of a fault.
const (
	lost       = "lost"       // the request does not arrive
	unanswered = "unanswered" // it arrives, the answer does not
	twice      = "twice"      // it arrives twice; the second answer is heard
	echoed     = "echoed"     // likewise; the first answer is heard
	late       = "late"       // no answer comes, and it arrives later on: see the step "deliver"
	dies       = "dies"       // it arrives, and the daemon is killed
	meanwhile  = "meanwhile"  // others are faster
)

// errNoAnswer is what the client says when its deadline passes.
var errNoAnswer = grpcstatus.Error(codes.DeadlineExceeded, "context deadline exceeded")

// wire lies between one host and etcd.
type wire struct {
	pb.KVClient    // nil: the package makes no other requests than those below
	pb.LeaseClient // likewise
	world          *world
	host           *daemon
}

func newDaemon(w *world, id, name, ip string) *daemon {
	d := &daemon{id: id, name: name, home: netip.MustParseAddr(ip), ips: []netip.Addr{netip.MustParseAddr(ip)}}
	client := clientv3.NewCtxClient(context.Background())
	line := &wire{world: w, host: d}
	client.KV, client.Lease = clientv3.NewKVFromKVClient(line, nil), clientv3.NewLeaseFromLeaseClient(line, nil, 0)
	d.store = &Store{
		client: client, conns: &connections{open: map[*connection]struct{}{}}, keys: keys{testPrefix}, trouble: func(error) {},
		doubt: make(chan struct{}, 1), resumed: make(chan struct{}, 1),
	}
	return d
}

// carry takes a request to etcd and the answer back, or not.
func carry[R any](w *wire, kind string, send func() (R, error)) (R, error) {
	var nothing R
	d := w.host
	d.asked[kind]++
	how := ""
	for _, f := range d.faults {
		if f.kind == kind && f.nth == d.asked[kind] {
			how = f.how
			for _, s := range f.meanwhile {
				w.world.take(s)
			}
		}
	}
	arrive := func() (R, error) {
		answer, err := send()
		if kind == "write" || kind == "revoke" {
			w.world.observe(d, "")
		}
		return answer, err
	}
	gone := d.cut || d.dead || how == lost || how == late
	silent := how == unanswered || how == dies || d.deaf
	d.guess = d.guess || kind == "write" && (gone || silent)
	if how == late && !d.cut && !d.dead {
		w.world.late = append(w.world.late, func() { _, _ = arrive() })
	}
	if gone {
		return nothing, errNoAnswer
	}
	if how == twice {
		_, _ = arrive()
	}
	answer, err := arrive()
	if how == echoed {
		_, _ = arrive()
	}
	d.dead = d.dead || how == dies
	if silent {
		return nothing, errNoAnswer
	}
	return answer, err
}

func (w *wire) Range(_ context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return carry(w, "range", func() (*pb.RangeResponse, error) { return w.world.kv.Range(w.world.ctx, r) })
}

func (w *wire) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	kind := "read"
	if slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool { return op.GetRequestRange() == nil }) {
		kind = "write"
	}
	return carry(w, kind, func() (*pb.TxnResponse, error) { return w.world.kv.Txn(w.world.ctx, r) })
}

func (w *wire) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest, _ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	answer, err := carry(w, "grant", func() (*pb.LeaseGrantResponse, error) {
		answer, err := w.world.lease.LeaseGrant(w.world.ctx, r)
		if err == nil {
			w.world.granted(w.host, answer.ID, r.TTL)
		}
		return answer, err
	})
	if err == nil {
		w.world.lifeOf(answer.ID).excused = false
	}
	return answer, err
}

func (w *wire) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest, _ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	answer, err := carry(w, "revoke", func() (*pb.LeaseRevokeResponse, error) {
		answer, err := w.world.lease.LeaseRevoke(w.world.ctx, r)
		if err == nil {
			w.world.forget(r.ID)
		}
		return answer, err
	})
	if l := w.world.lifeOf(r.ID); l != nil {
		l.excused = true // the request was lost: etcd will do it
	}
	return answer, err
}

func (w *wire) LeaseKeepAlive(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	return &renewal{ask: func(r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
		return carry(w, "renew", func() (*pb.LeaseKeepAliveResponse, error) { return w.world.renew(r) })
	}}, nil
}

// step is one line of a history: "a join", "wait 70s", "a regain / write 1 unanswered / range 2 meanwhile b join, c join".
type step struct {
	who, verb, arg string // who is empty for what befalls all
	faults         []fault
}

func parseStep(line string) step {
	parts := strings.Split(line, " / ")
	words := strings.Fields(parts[0])
	var s step
	if _, ok := cast[words[0]]; ok {
		s.who, words = words[0], words[1:]
	}
	s.verb = words[0]
	if len(words) > 1 {
		s.arg = words[1]
	}
	for _, part := range parts[1:] {
		var f fault
		if _, err := fmt.Sscan(part, &f.kind, &f.nth, &f.how); err != nil {
			panic(fmt.Sprintf("history: %q: %v", line, err))
		}
		if _, others, ok := strings.Cut(part, meanwhile+" "); ok {
			for other := range strings.SplitSeq(others, ", ") {
				f.meanwhile = append(f.meanwhile, parseStep(other))
			}
		}
		s.faults = append(s.faults, f)
	}
	return s
}
