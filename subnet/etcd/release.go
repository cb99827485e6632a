package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// ErrAlive says that a lease is not given up because its holder runs.
var ErrAlive = errors.New("its holder runs")

// Release gives the node's lease up on purpose: peers drop their rows at once, and the subnet is remembered as free. It
// is no error when there is none. The node's daemon must not run: on another boot than the given one that is [ErrAlive],
// here the caller makes sure of it.
func (s *Store) Release(ctx context.Context, node, boot string) (subnet.Lease, error) {
	k := s.keys
	v, err := s.read(ctx, &view{}, k.alive(node), k.node(node))
	if errors.Is(err, ErrNoConfig) {
		return subnet.Lease{}, nil
	}
	if err != nil {
		return subnet.Lease{}, err
	}
	own := v.of(node)
	if len(own) == 0 {
		return subnet.Lease{}, nil
	}
	var t transaction
	alive := v.own[k.alive(node)]
	if alive != nil {
		var p presence
		if err := json.Unmarshal(alive.Value, &p); err == nil && p.Boot != boot {
			return subnet.Lease{}, fmt.Errorf("release %s: %w, at %s: is that another host? If it was this one before a reboot, try again in %s",
				node, ErrAlive, p.PublicIP, AliveTTL)
		}
		t.replaced = append(t.replaced, clientv3.LeaseID(alive.Lease))
	}
	t.unchanged(k.alive(node), modRevision(alive))
	t.unchanged(k.node(node), modRevision(v.own[k.node(node)]))
	for _, key := range []string{k.node(node), k.alive(node)} {
		t.remove(key)
	}
	for _, r := range own {
		if err := t.release(ctx, s, v, r); err != nil {
			return subnet.Lease{}, err
		}
	}
	lease := own[0].lease
	if err := t.commit(ctx, s, string(own[0].kv.Key)); err != nil {
		return lease, fmt.Errorf("release %s: %w", leaseName(lease), err)
	}
	s.revoke(ctx, t.replaced...)
	return lease, nil
}

// release removes one lease and remembers that it was given up on purpose. The address stays somebody else's if it is.
func (t *transaction) release(ctx context.Context, s *Store, v *view, r record) error {
	t.unchanged(string(r.kv.Key), r.kv.ModRevision)
	t.remove(string(r.kv.Key))
	vtep := v.keys.vtep(r.lease.PublicIP)
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.client.Get(ctx, vtep) })
	if err != nil {
		return fmt.Errorf("look for %s: %w", r.lease.PublicIP, s.explain(ctx, err))
	}
	if len(answer.Kvs) > 0 && string(answer.Kvs[0].Value) == r.lease.Node && !slices.Contains(t.removed, vtep) {
		t.unchanged(vtep, answer.Kvs[0].ModRevision)
		t.remove(vtep)
	}
	t.replaced = append(t.replaced, clientv3.LeaseID(r.kv.Lease))
	for _, p := range r.lease.Subnets() {
		t.ops = append(t.ops, clientv3.OpPut(v.keys.history(p), encode(past{Node: r.lease.Node, Epoch: v.epoch(p), Released: true})))
	}
	return nil
}
