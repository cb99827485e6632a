package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// reservations reads which subnets are kept for whom.
func (s *Store) reservations(ctx context.Context, revision int64) ([]subnet.Reservation, error) {
	var all []subnet.Reservation
	err := s.pages(ctx, s.keys.reservations(), revision, nil, true, func(kv *mvccpb.KeyValue) {
		p, err := parsePrefixName(strings.TrimPrefix(string(kv.Key), s.keys.reservations()))
		if err != nil {
			return
		}
		var r reservation
		_ = json.Unmarshal(kv.Value, &r) // one that cannot be read is nobody's, and still not free
		all = append(all, subnet.Reservation{Node: r.Node, Subnet: p})
	})
	return all, err
}

// Reserve keeps a subnet for a node: nobody else gets it, and the node gets it when it next takes a lease. It takes the
// place of the node's former reservation in that family, which is returned; the zero Prefix when there was none. It is an
// error when somebody else has the subnet or it is none of the network's. Hosts that run flannel do not know of it, and a
// host whose lease has expired while its pods run takes that subnet back all the same.
func (s *Store) Reserve(ctx context.Context, node string, p netip.Prefix) (former netip.Prefix, err error) {
	if err := subnet.CheckNode(node); err != nil {
		return former, err
	}
	for {
		former, err = s.reserve(ctx, node, p)
		if !errors.Is(err, errRace) {
			return former, err
		}
		if err := sleep(ctx, rand.N(raceJitter)); err != nil {
			return former, err
		}
	}
}

func (s *Store) reserve(ctx context.Context, node string, p netip.Prefix) (former netip.Prefix, err error) {
	v, err := s.read(ctx, nil)
	if err == nil {
		v.reserved, err = s.reservations(ctx, v.revision)
	}
	if err != nil {
		return former, err
	}
	if err := reservable(v, node, p); err != nil {
		return former, fmt.Errorf("reserve %s for %s: %w", p, node, err)
	}
	k := s.keys
	var t transaction
	t.unchanged(k.config(), v.configSeen)
	for _, r := range v.reserved {
		if r.Node == node && r.Subnet != p && r.Subnet.Addr().Is4() == p.Addr().Is4() {
			former = r.Subnet
			t.remove(k.reserved(former))
		}
	}
	t.ops = append(t.ops, clientv3.OpPut(k.reserved(p), encode(reservation{Node: node})))
	t.touch(v, p, node) // whoever bids for it at this moment has relied on its history
	if err := t.commit(ctx, s, ""); err != nil {
		return former, fmt.Errorf("reserve %s for %s: %w", p, node, err)
	}
	return former, nil
}

// reservable says why the node cannot have the subnet, nil if it can.
func reservable(v *view, node string, p netip.Prefix) error {
	fits := false
	for _, pool := range v.config.Pools() {
		_, ok := pool.Index(p)
		fits = fits || ok
	}
	if !fits {
		return fmt.Errorf("not a subnet of the network: want one such as %s", v.config.Pools()[0].At(1))
	}
	if holder, taken := others(v, node).Overlapping(p); taken {
		return fmt.Errorf("%s is in the way: release it first", holder)
	}
	for _, r := range v.reserved {
		if r.Node != node && r.Subnet.Overlaps(p) {
			return fmt.Errorf("%s is reserved for %s: release that first", r.Subnet, r.Node)
		}
	}
	return nil
}

// Unreserve gives up what is reserved for the node, and returns that. Its lease stays.
func (s *Store) Unreserve(ctx context.Context, node string) ([]netip.Prefix, error) {
	all, err := s.reservations(ctx, 0)
	if err != nil {
		return nil, err
	}
	var t transaction
	var freed []netip.Prefix
	for _, r := range all {
		if r.Node == node {
			freed = append(freed, r.Subnet)
			t.remove(s.keys.reserved(r.Subnet))
		}
	}
	if len(freed) == 0 {
		return nil, nil
	}
	return freed, t.commit(ctx, s, "")
}

// Found says that the network is new: nobody has to wait for hosts of a former one. It is no error when hosts are in it.
func (s *Store) Found(ctx context.Context) error {
	_, err := request(ctx, func(ctx context.Context) (*clientv3.PutResponse, error) {
		return s.client.Put(ctx, s.keys.settled(), "new")
	})
	if err != nil {
		return fmt.Errorf("write that the network is new: %w", s.explain(ctx, err))
	}
	return nil
}

// Empty says whether the store has no network at all.
func (s *Store) Empty(ctx context.Context) (bool, error) {
	_, err := s.Config(ctx)
	if errors.Is(err, ErrNoConfig) {
		return true, nil
	}
	return false, err
}
