package etcd

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// side is the model or the real etcd. It tells every answer in words, in which an etcd lease is its number in the order of
// the grants: its identifier is random.
type side struct {
	ctx   context.Context
	kv    clientv3.KV
	lease clientv3.Lease
	ids   []clientv3.LeaseID
}

func (s *side) do(op clientv3.Op) string {
	answer, err := s.kv.Do(s.ctx, op)
	switch {
	case err != nil:
		return rpctypes.ErrorDesc(err)
	case answer.Get() != nil:
		return fmt.Sprintf("at %d: %s", answer.Get().Header.Revision, s.kvs(answer.Get().Kvs, answer.Get().More, answer.Get().Count))
	case answer.Del() != nil:
		return fmt.Sprintf("at %d: deleted %d", answer.Del().Header.Revision, answer.Del().Deleted)
	}
	return fmt.Sprintf("at %d: put", answer.Put().Header.Revision)
}

func (s *side) kvs(all []*mvccpb.KeyValue, more bool, count int64) string {
	words := []string{fmt.Sprintf("%d keys (more %t)", count, more)}
	for _, kv := range all {
		lease := 0
		for i, id := range s.ids {
			if int64(id) == kv.Lease {
				lease = i + 1
			}
		}
		words = append(words, fmt.Sprintf("%s=%s created %d changed %d version %d lease %d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, lease))
	}
	return strings.Join(words, ", ")
}

func (s *side) txn(conditions []clientv3.Cmp, then, otherwise []clientv3.Op) string {
	answer, err := s.kv.Txn(s.ctx).If(conditions...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return rpctypes.ErrorDesc(err)
	}
	words := []string{fmt.Sprintf("at %d: %t", answer.Header.Revision, answer.Succeeded)}
	for _, r := range answer.Responses {
		switch {
		case r.GetResponseRange() != nil:
			words = append(words, s.kvs(r.GetResponseRange().Kvs, r.GetResponseRange().More, r.GetResponseRange().Count))
		case r.GetResponseDeleteRange() != nil:
			words = append(words, fmt.Sprintf("deleted %d", r.GetResponseDeleteRange().Deleted))
		default:
			words = append(words, "put")
		}
	}
	return strings.Join(words, "; ")
}

func (s *side) grant(seconds int64) string {
	answer, err := s.lease.Grant(s.ctx, seconds)
	if err != nil {
		return rpctypes.ErrorDesc(err)
	}
	s.ids = append(s.ids, answer.ID)
	return fmt.Sprintf("at %d: %d s", answer.Revision, answer.TTL)
}

func (s *side) revoke(n int) string {
	answer, err := s.lease.Revoke(s.ctx, s.ids[n-1])
	if err != nil {
		return rpctypes.ErrorDesc(err)
	}
	return fmt.Sprintf("at %d: revoked", answer.Header.Revision)
}

func (s *side) renew(n int) string {
	answer, err := s.lease.KeepAliveOnce(s.ctx, s.ids[n-1])
	if err != nil {
		return rpctypes.ErrorDesc(err)
	}
	return fmt.Sprintf("%d s", answer.TTL)
}

func (s *side) count() string {
	answer, err := s.lease.Leases(s.ctx)
	if err != nil {
		return rpctypes.ErrorDesc(err)
	}
	return fmt.Sprintf("%d leases", len(answer.Leases))
}

// on makes a put hang on the nth etcd lease.
func (s *side) on(n int) clientv3.OpOption { return clientv3.WithLease(s.ids[n-1]) }

var (
	put, get, del = clientv3.OpPut, clientv3.OpGet, clientv3.OpDelete
	all           = func() clientv3.Op { return get("\x00", clientv3.WithFromKey()) }
	changed       = func(key string, at int64) clientv3.Cmp { return clientv3.Compare(clientv3.ModRevision(key), "=", at) }
	created       = func(key string, at int64) clientv3.Cmp {
		return clientv3.Compare(clientv3.CreateRevision(key), "=", at)
	}
)

type (
	cmps = []clientv3.Cmp
	ops  = []clientv3.Op
)

// exchanges are requests, each made after those before it.
var exchanges = []func(*side) string{
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.do(put("a/1", "x")) },
	func(s *side) string { return s.do(put("a/2", "y")) },
	func(s *side) string { return s.do(put("a/1", "z")) },
	func(s *side) string { return s.do(put("a", "before")) },
	func(s *side) string { return s.do(put("a0", "behind")) },
	func(s *side) string { return s.do(put("", "x")) },
	func(s *side) string { return s.do(get("")) },
	func(s *side) string { return s.do(get("a/1")) },
	func(s *side) string { return s.do(get("a/3")) },
	func(s *side) string { return s.do(get("a/", clientv3.WithPrefix())) },
	func(s *side) string { return s.do(rangePage("a/", "a/", 0)) },
	func(s *side) string { return s.do(rangePage("a/", "a/1\x00", 3)) },
	func(s *side) string { return s.do(get("a/", clientv3.WithPrefix(), clientv3.WithLimit(1))) },
	func(s *side) string { return s.do(get("a/", clientv3.WithPrefix(), clientv3.WithLimit(2))) },
	func(s *side) string { return s.do(get("a/1", clientv3.WithRev(2))) },
	func(s *side) string { return s.do(get("a/1", clientv3.WithRev(1))) },
	func(s *side) string { return s.do(get("a/1", clientv3.WithRev(100))) },
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.do(del("a/3")) },
	func(s *side) string { return s.do(del("a/2")) },
	func(s *side) string { return s.do(put("a/2", "again")) },
	func(s *side) string { return s.do(get("a/2")) },
	func(s *side) string {
		return s.txn(cmps{changed("a/1", 4), created("a/1", 2), changed("none", 0), created("none", 0)}, ops{put("b", "1"), get("b"), del("a/2"), get("a/2")}, nil)
	},
	func(s *side) string {
		return s.txn(cmps{changed("a/1", 4), created("a/1", 4)}, ops{put("b", "2")}, ops{get("b"), get("a/1")})
	},
	func(s *side) string { return s.txn(cmps{changed("a/1", 3)}, ops{put("b", "2")}, nil) },
	func(s *side) string { return s.txn(cmps{changed("b", 0)}, nil, ops{put("b", "3"), put("c", "4")}) },
	func(s *side) string { return s.txn(nil, ops{get("b"), rangePage("a", "a", 0)}, nil) },
	func(s *side) string { return s.txn(nil, nil, nil) },
	func(s *side) string { return s.txn(nil, ops{del("none")}, nil) },
	func(s *side) string { return s.txn(nil, ops{put("d", "1"), put("d", "2")}, nil) },
	func(s *side) string { return s.txn(nil, ops{put("d", "1"), del("d")}, nil) },
	func(s *side) string { return s.txn(nil, ops{del("d"), put("d", "1")}, nil) },
	func(s *side) string { return s.txn(nil, ops{del("b"), del("b")}, nil) },
	func(s *side) string { return s.txn(nil, ops{get("")}, nil) },
	func(s *side) string { return s.do(put("d", "1", clientv3.WithLease(12345))) },
	func(s *side) string { return s.count() },
	func(s *side) string { return s.grant(60) },
	func(s *side) string { return s.grant(180) },
	func(s *side) string { return s.count() },
	func(s *side) string { return s.do(put("e", "1", s.on(1))) },
	func(s *side) string {
		return s.txn(cmps{changed("f", 0)}, ops{put("f", "1", s.on(1)), put("g", "1", s.on(2))}, nil)
	},
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.do(put("f", "2", s.on(2))) },
	func(s *side) string { return s.renew(1) },
	func(s *side) string { return s.revoke(1) },
	func(s *side) string { return s.renew(1) },
	func(s *side) string { return s.revoke(1) },
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.txn(nil, ops{put("h", "1"), put("i", "1", s.on(1))}, nil) },
	func(s *side) string { return s.do(put("f", "3")) }, // on no etcd lease now
	func(s *side) string { return s.revoke(2) },
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.grant(60) },
	func(s *side) string { return s.revoke(3) }, // nothing hangs on it
	func(s *side) string { return s.do(get("a/", clientv3.WithPrefix(), clientv3.WithRev(8))) },
	func(s *side) string { return s.do(del("\x00", clientv3.WithFromKey())) },
	func(s *side) string { return s.do(all()) },
	func(s *side) string { return s.count() },
}

// TestTheModelOfEtcdAnswersAsEtcdDoes: the same requests get the same answers, revisions and errors included.
func TestTheModelOfEtcdAnswersAsEtcdDoes(t *testing.T) {
	t.Parallel()
	server, fake := serveReal(t), newFakeEtcd()
	real := &side{ctx: t.Context(), kv: server.KV, lease: server.Lease}
	model := &side{ctx: t.Context(), kv: clientv3.NewKVFromKVClient(fake, nil), lease: clientv3.NewLeaseFromLeaseClient(fake, nil, 0)}
	for i, ask := range exchanges {
		if have, want := ask(model), ask(real); have != want {
			t.Errorf("exchange %d\n%s", i, "--- the model\n"+have+"\n--- etcd\n"+want)
		}
	}
}
