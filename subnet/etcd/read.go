package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// ErrNoConfig says that the network has no configuration yet.
var ErrNoConfig = errors.New("no network configuration")

// page is how many keys one answer may hold.
const page = 1000

// view is what the store holds at one revision, decoded. A record is decoded once.
type view struct {
	keys          keys
	revision      int64
	config        subnet.Config
	configRev     int64 // at which the configuration in use was written
	configSeen    int64 // at which the last one was written, whether it can be used or not
	configCreated int64 // at which it came to be
	badConfig     error // why a later one is not in use
	leases        map[string]record
	held          []subnet.Held
	reserved      []subnet.Reservation        // read only by who needs it
	gone          []subnet.Lease              // deleted since history was read
	doubt         bool                        // the store is not what it was
	own           map[string]*mvccpb.KeyValue // the further keys asked for, by key; absent ones are absent
}

type record struct {
	kv      *mvccpb.KeyValue
	lease   subnet.Lease
	skipped *subnet.Skipped
}

// List returns the network. It blocks for at most the time of a few requests. [ErrNoConfig] when there is none.
func (s *Store) List(ctx context.Context) (subnet.Snapshot, error) {
	v, err := s.read(ctx, nil)
	if err != nil {
		return subnet.Snapshot{}, err
	}
	return v.snapshot(), nil
}

// read takes everything at one revision: one transaction for the configuration, the further keys and the first page of
// leases, then the other pages. A compaction in between makes it an error, never a partial answer. A configuration that is
// wrong leaves that of the former view in use; without one it is an error.
func (s *Store) read(ctx context.Context, former *view, further ...string) (*view, error) {
	v := &view{keys: s.keys, leases: map[string]record{}, own: map[string]*mvccpb.KeyValue{}}
	ops := []clientv3.Op{clientv3.OpGet(s.keys.config()), rangePage(s.keys.subnets(), s.keys.subnets(), 0)}
	for _, key := range further {
		ops = append(ops, clientv3.OpGet(key))
	}
	first, err := request(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).Then(ops...).Commit()
	})
	if err != nil {
		return nil, fmt.Errorf("read the network: %w", s.explain(ctx, err))
	}
	v.revision = first.Header.Revision
	config := first.Responses[0].GetResponseRange().Kvs
	if former != nil {
		v.config, v.configRev = former.config, former.configRev
	}
	switch {
	case len(config) > 0:
		if err := v.setConfig(config[0], former); err != nil && former == nil {
			return v, fmt.Errorf("%s: %w", s.keys.config(), err)
		}
	case former == nil || former.configRev == 0 || v.revision < former.revision:
		return v, s.noConfig()
	default: // deleted, unless the store is another: what is missing besides is not believed to be gone
		v.badConfig, v.configCreated, v.doubt = errNoConfig, former.configCreated, true
	}
	for _, r := range first.Responses[2:] {
		for _, kv := range r.GetResponseRange().Kvs {
			v.own[string(kv.Key)] = kv
		}
	}
	leases := first.Responses[1].GetResponseRange()
	if err := s.pages(ctx, s.keys.subnets(), v.revision, leases.Kvs, leases.More, v.put); err != nil {
		return nil, err
	}
	err = s.pages(ctx, s.keys.histories(), v.revision, nil, true, func(kv *mvccpb.KeyValue) {
		if h, ok := decodeHistory(s.keys, kv); ok {
			v.held = append(v.held, h)
		}
	})
	return v, err
}

func (s *Store) noConfig() error {
	return fmt.Errorf("%w at %s: set one with: overlayd config set FILE", ErrNoConfig, s.keys.config())
}

func rangePage(prefix, from string, revision int64) clientv3.Op {
	return clientv3.OpGet(from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(page), clientv3.WithRev(revision))
}

// pages calls each for the keys of a first page and of all further ones at the same revision.
func (s *Store) pages(ctx context.Context, prefix string, revision int64, kvs []*mvccpb.KeyValue, more bool, each func(*mvccpb.KeyValue)) error {
	from := prefix
	for {
		for _, kv := range kvs {
			each(kv)
			from = string(kv.Key) + "\x00"
		}
		if !more {
			return nil
		}
		answer, err := request(ctx, func(ctx context.Context) (clientv3.OpResponse, error) {
			return s.client.Do(ctx, rangePage(prefix, from, revision))
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", prefix, s.explain(ctx, err))
		}
		kvs, more = answer.Get().Kvs, answer.Get().More
	}
}

// errRefused says that a configuration was written which hosts that have leases cannot follow while they run.
var errRefused = errors.New("the network configuration was changed to one that running hosts cannot follow")

// setConfig takes a configuration into use. One that is wrong, or that the leases of the former view cannot follow, leaves
// the one in use.
func (v *view) setConfig(kv *mvccpb.KeyValue, former *view) error {
	c, err := subnet.ParseConfig(kv.Value)
	if err == nil && former != nil && former.configRev != 0 {
		if bad := former.snapshot().Admits(c); bad != nil {
			err = fmt.Errorf("%w: %w", errRefused, bad)
		}
	}
	v.badConfig, v.configCreated, v.configSeen = err, kv.CreateRevision, kv.ModRevision
	if err != nil {
		return err
	}
	v.config, v.configRev = c, kv.ModRevision
	return nil
}

func (v *view) put(kv *mvccpb.KeyValue) {
	l, skipped := decodeLease(v.keys, v.config, kv)
	kept := &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Lease: kv.Lease}
	v.leases[string(kv.Key)] = record{kv: kept, lease: l, skipped: skipped}
}

// snapshot makes the vetted value of what the view holds.
func (v *view) snapshot() subnet.Snapshot {
	leases := make([]subnet.Lease, 0, len(v.leases))
	var skipped []subnet.Skipped
	for _, r := range v.leases {
		if r.skipped != nil {
			skipped = append(skipped, *r.skipped)
			continue
		}
		leases = append(leases, r.lease)
	}
	if v.badConfig != nil {
		reason := subnet.ReasonValue
		if errors.Is(v.badConfig, errRefused) {
			reason = subnet.ReasonConfig
		}
		skipped = append(skipped, subnet.Skipped{Key: "config", Reason: reason, Detail: clip(v.badConfig.Error()) + " (the former one stays in use)"})
	}
	n := subnet.Vet(v.revision, v.config, leases, v.held, skipped)
	n.Doubt, n.Reserved = v.doubt, v.reserved
	return n
}

// only returns the view of one lease.
func (v *view) only(key string) *view {
	return &view{keys: v.keys, revision: v.revision, config: v.config, configRev: v.configRev, leases: map[string]record{key: v.leases[key]}}
}

// wrote takes up a lease that was just written. The watch tells its revisions soon.
func (v *view) wrote(key string, l subnet.Lease, id clientv3.LeaseID) {
	kv := v.leases[key].kv
	if kv == nil {
		kv = &mvccpb.KeyValue{Key: []byte(key), CreateRevision: v.revision + 1}
	}
	l.Created = kv.CreateRevision
	v.leases[key] = record{kv: &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: v.revision + 1, Lease: int64(id)}, lease: l}
}

// remember takes a newer record of a subnet's history.
func (v *view) remember(kv *mvccpb.KeyValue) {
	h, ok := decodeHistory(v.keys, kv)
	if !ok {
		return
	}
	held := slices.DeleteFunc(slices.Clone(v.held), func(old subnet.Held) bool { return old.Subnet == h.Subnet })
	v.held = append(held, h) // a new slice: snapshots share the old one
}

// of returns the records of a node's leases, those that are of no use included: there is one, unless the configuration was
// changed or somebody wrote another.
func (v *view) of(node string) []record {
	var own []record
	for _, r := range v.leases {
		if node != "" && r.lease.Node == node {
			own = append(own, r)
		}
	}
	slices.SortFunc(own, func(a, b record) int { return cmp.Compare(a.kv.CreateRevision, b.kv.CreateRevision) })
	return own
}

// epoch tells how often the subnet has changed hands.
func (v *view) epoch(p netip.Prefix) int64 {
	for _, h := range v.held {
		if h.Subnet == p {
			return h.Epoch
		}
	}
	return 0
}
