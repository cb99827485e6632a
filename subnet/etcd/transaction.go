package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// transaction collects what a write relies on and what it writes.
type transaction struct {
	claim, alive clientv3.LeaseID
	compares     []clientv3.Cmp
	ops          []clientv3.Op
	removed      []string           // keys
	replaced     []clientv3.LeaseID // etcd leases that nothing hangs on afterwards
}

// unchanged relies on the key's last revision, 0 for its absence.
func (t *transaction) unchanged(key string, revision int64) {
	t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
}

func (t *transaction) put(key, text string, lease clientv3.LeaseID) {
	t.ops = append(t.ops, clientv3.OpPut(key, text, clientv3.WithLease(lease)))
}

func (t *transaction) remove(key string) {
	t.ops = append(t.ops, clientv3.OpDelete(key))
	t.removed = append(t.removed, key)
}

// remember writes into the subnet's history that node has it. Two keys may cover one subnet; the history is one, so of
// two that claim it at the same time only one can.
func (t *transaction) remember(v *view, p netip.Prefix, node string) {
	key := v.keys.history(p)
	for _, h := range v.held {
		if h.Subnet == p {
			t.unchanged(key, h.Rank) // 0 for what only the node remembers
			if h.Node != node || h.Released {
				t.ops = append(t.ops, clientv3.OpPut(key, encode(past{Node: node, Epoch: h.Epoch + 1})))
			}
			return
		}
	}
	t.unchanged(key, 0)
	t.ops = append(t.ops, clientv3.OpPut(key, encode(past{Node: node, Epoch: 1})))
}

// touch writes the subnet's history as it is: whoever relies on it being unchanged reads again.
func (t *transaction) touch(v *view, p netip.Prefix, node string) {
	key := v.keys.history(p)
	now := past{Node: node}
	rank := int64(0)
	for _, h := range v.held {
		if h.Subnet == p {
			now, rank = past{Node: h.Node, Epoch: h.Epoch, Released: h.Released}, h.Rank
		}
	}
	t.unchanged(key, rank)
	t.ops = append(t.ops, clientv3.OpPut(key, encode(now)))
}

// errUnknown says that nobody knows whether it was written. What hangs on the new etcd leases must not be revoked: it may
// be what others go by.
var errUnknown = errors.New("write the lease, outcome unknown")

// commit writes. When the answer is lost, whether it was written is read from the key that tells; likewise when the request
// has come twice, and only the first could succeed. An empty key tells nothing.
func (t *transaction) commit(ctx context.Context, s *Store, telling string) error {
	var otherwise []clientv3.Op
	if telling != "" {
		otherwise = append(otherwise, clientv3.OpGet(telling))
	}
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(t.compares...).Then(t.ops...).Else(otherwise...).Commit()
	})
	switch {
	case err == nil && (answer.Succeeded || telling != "" && t.written(answer.Responses[0].GetResponseRange().Kvs)):
		return nil
	case err == nil:
		return errRace
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("write the lease: %w", err)
	case telling != "":
		now, readErr := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.client.Get(ctx, telling) })
		if readErr == nil && t.written(now.Kvs) {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", errUnknown, s.explain(ctx, err))
}

// written says whether the key that tells is as the transaction makes it: on the new etcd lease, or without one removed.
func (t *transaction) written(kvs []*mvccpb.KeyValue) bool {
	if t.claim == 0 {
		return len(kvs) == 0
	}
	return len(kvs) == 1 && clientv3.LeaseID(kvs[0].Lease) == t.claim
}
