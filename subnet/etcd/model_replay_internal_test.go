package etcd

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// serveReal starts a real server and returns a connection to it.
func serveReal(t *testing.T) *clientv3.Client {
	t.Helper()
	addr := ""
	for addr == "" {
		try := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)) // none that the kernel gives to connections
		if l, err := net.Listen("tcp", try); err == nil {
			addr = try
			l.Close()
		}
	}
	server, err := etcdtest.Serve(t.TempDir(), "http://"+addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// realArena is an empty store on a real server. Its disasters are made of requests: revisions go on, as they do after a
// restore with etcdutl's --bump-revision. That they may go back is the model's part, and that of
// TestAWipedStoreIsListedAgain.
func realArena(t *testing.T, server *clientv3.Client) arena {
	kv, lease := clientv3.RetryKVClient(server), clientv3.RetryLeaseClient(server)
	a := arena{ctx: t.Context(), kv: kv, lease: lease}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	everything := func() []*mvccpb.KeyValue {
		answer, err := kv.Range(a.ctx, &pb.RangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00")})
		must(err)
		return answer.Kvs
	}
	leases := func() []*pb.LeaseStatus {
		answer, err := lease.LeaseLeases(a.ctx, &pb.LeaseLeasesRequest{})
		must(err)
		return answer.Leases
	}
	a.wipe = func() {
		for _, l := range leases() {
			_, err := lease.LeaseRevoke(a.ctx, &pb.LeaseRevokeRequest{ID: l.ID})
			must(err)
		}
		_, err := kv.DeleteRange(a.ctx, &pb.DeleteRangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00")})
		must(err)
	}
	a.backup = func() func() {
		kvs, granted := everything(), leases()
		return func() {
			a.wipe()
			for _, l := range granted {
				_, err := lease.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{ID: l.ID, TTL: int64(claimTTL.Seconds())})
				must(err)
			}
			for _, age := range []func(*mvccpb.KeyValue) int64{(*mvccpb.KeyValue).GetCreateRevision, (*mvccpb.KeyValue).GetModRevision} {
				slices.SortStableFunc(kvs, func(x, y *mvccpb.KeyValue) int { return cmp.Compare(age(x), age(y)) })
				for _, x := range kvs { // once for the order in which they came to be, once for that of their changes
					_, err := kv.Put(a.ctx, &pb.PutRequest{Key: x.Key, Value: x.Value, Lease: x.Lease})
					must(err)
				}
			}
		}
	}
	a.wipe()
	return a
}

// replays is how many histories of each plot the real server plays.
const replays = 6

// TestTheSameHistoriesOnARealEtcd: they keep the invariants there as well, and end with the same store.
func TestTheSameHistoriesOnARealEtcd(t *testing.T) {
	t.Parallel()
	server := serveReal(t)
	for _, p := range plots {
		t.Run(p.name, func(t *testing.T) {
			for seed := range replays {
				replay(t, server, p.history().Example(seed), p.settle)
			}
		})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { replay(t, server, c.history, c.settle) })
	}
}

// replay plays a history on the model and on the real server.
func replay(t *testing.T, server *clientv3.Client, history []string, settle time.Duration) {
	t.Helper()
	var texts []string
	for _, a := range []arena{modelArena(t), realArena(t, server)} {
		w := newWorld(told{t, history}, a, settle)
		w.run(history)
		texts = append(texts, w.text())
	}
	if texts[0] != texts[1] {
		t.Fatalf("the model ends with\n%s\nand etcd with\n%s\nafter\n%s", texts[0], texts[1], show(history))
	}
}

// told is a test that names the history when it fails.
type told struct {
	*testing.T
	history []string
}

func (t told) Fatalf(format string, args ...any) {
	t.Helper()
	t.T.Fatalf("%s\n--- the history\n%s", fmt.Sprintf(format, args...), show(t.history))
}

// show is a history as a case is written.
func show(history []string) string {
	var b strings.Builder
	for _, line := range history {
		fmt.Fprintf(&b, "\t%s\n", line)
	}
	return b.String()
}
