package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// bid is what a claim wants to write: what was decided from one reading of the network, to be written only if nothing that
// it relied on has changed since.
type bid struct {
	view  *view
	lease subnet.Lease
	gone  []record // of hosts that are gone, which had our public address
	t     transaction
}

// bid reads the network and decides. With only, no other subnets than those will do.
func (c *Claim) bid(ctx context.Context, only []netip.Prefix) (*bid, error) {
	s, k := c.store, c.store.keys
	c.mu.Lock()
	want, former := c.want, c.network
	c.mu.Unlock()
	nodeKey, vtepKey, aliveKey := k.node(want.Node), k.vtep(want.PublicIP), k.alive(want.Node)
	v, err := s.read(ctx, former, nodeKey, vtepKey, aliveKey, k.settled(), k.settling())
	if err == nil && errors.Is(v.badConfig, errNoConfig) { // a claim waits for one; a watch need not
		err = s.noConfig()
	}
	if err == nil {
		v.reserved, err = s.reservations(ctx, v.revision)
	}
	if err != nil {
		return nil, err
	}
	network := v.snapshot()
	if own, ok := network.Lease(want.Node); only != nil && (!ok || !slices.Equal(own.Subnets(), only)) {
		n := others(v, want.Node)
		n.Skipped = nil // what cannot be read takes nothing from who holds it
		if holder, taken := n.Overlapping(only...); taken {
			return nil, fmt.Errorf("%w: %s is covered by %s", ErrLost, only, holder)
		}
	}
	if err := c.lonely(want, v.own[aliveKey]); err != nil {
		return nil, err
	}
	if only == nil && c.terms.Settle > 0 && newcomer(v, want) {
		if err := c.settle(ctx, v); err != nil {
			return nil, err
		}
	}
	b := &bid{view: v}
	b.t.unchanged(k.config(), v.configSeen)
	b.t.unchanged(nodeKey, modRevision(v.own[nodeKey]))
	b.t.unchanged(vtepKey, modRevision(v.own[vtepKey]))
	if b.gone, err = c.evict(ctx, want, v, v.own[vtepKey], &b.t); err != nil {
		return nil, err
	}
	if b.lease, err = c.choose(want, v, network, b.gone, only, &b.t); err != nil {
		return nil, err
	}
	if kv := v.own[aliveKey]; kv != nil {
		b.t.replaced = append(b.t.replaced, clientv3.LeaseID(kv.Lease))
	}
	key := k.subnet(b.lease)
	for _, r := range append(v.of(want.Node), b.gone...) { // one lease a node, and none for a gone one
		b.t.replaced = append(b.t.replaced, clientv3.LeaseID(r.kv.Lease))
		if name := string(r.kv.Key); name != key {
			b.t.unchanged(name, r.kv.ModRevision)
			b.t.remove(name)
		}
	}
	return b, nil
}

// write makes the bid's keys hang on the given etcd leases.
func (b *bid) write(ctx context.Context, c *Claim, claim, alive clientv3.LeaseID) error {
	k, l := c.store.keys, b.lease
	b.t.claim, b.t.alive = claim, alive
	b.t.put(k.subnet(l), encodeLease(l, b.view.config.Backend.VNI), claim)
	b.t.put(k.node(l.Node), leaseName(l), claim)
	b.t.put(k.vtep(l.PublicIP), l.Node, claim)
	b.t.put(k.alive(l.Node), encode(presence{Boot: c.terms.Boot, PublicIP: l.PublicIP}), alive)
	return b.t.commit(ctx, c.store, k.node(l.Node))
}

func (b *bid) evicted() []subnet.Lease {
	var all []subnet.Lease
	for _, r := range b.gone {
		all = append(all, r.lease)
	}
	return all
}

// ErrSettling says that the store looks as if it had been wiped, and that its hosts get the time to put their leases back.
var ErrSettling = errors.New("no host has a lease in this store yet")

// settleLook is how often the end of that time is looked for.
const settleLook = 500 * time.Millisecond

// newcomer says whether the node has no claim to any subnet: no lease, no reservation, no history, no memory.
func newcomer(v *view, want subnet.Lease) bool {
	mine := func(h subnet.Held) bool { return h.Node == want.Node }
	reserved := func(r subnet.Reservation) bool { return r.Node == want.Node }
	return len(v.of(want.Node)) == 0 && len(want.Subnets()) == 0 && !slices.ContainsFunc(v.held, mine) && !slices.ContainsFunc(v.reserved, reserved)
}

// settle begins the time in which newcomers wait, or sees whether it is over: then it returns nil. etcd's own clock counts it.
func (c *Claim) settle(ctx context.Context, v *view) error {
	s, k := c.store, c.store.keys
	waiting := fmt.Errorf("%w: if it was wiped, its hosts put their leases back now; this host, which has had none, waits %s for that", ErrSettling, c.terms.Settle)
	if v.own[k.settled()] != nil {
		if v.own[k.settling()] != nil {
			return waiting
		}
		return nil
	}
	granted, err := request(ctx, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return s.client.Grant(ctx, int64(c.terms.Settle/time.Second))
	})
	if err != nil {
		return fmt.Errorf("ask etcd for a lease: %w", s.explain(ctx, err))
	}
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(k.settled()), "=", 0)).
			Then(clientv3.OpPut(k.settled(), c.want.Node), clientv3.OpPut(k.settling(), c.want.Node, clientv3.WithLease(granted.ID))).
			Commit()
	})
	if err != nil {
		return fmt.Errorf("write that the network settles: %w", s.explain(ctx, err)) // the etcd lease may be in use: it expires
	}
	if !answer.Succeeded { // somebody else has begun
		s.revoke(ctx, granted.ID)
	}
	return waiting
}

func modRevision(kv *mvccpb.KeyValue) int64 {
	if kv == nil {
		return 0
	}
	return kv.ModRevision
}

// lonely makes sure that no other living host has our name: one of another boot at another address. The same host after a
// restart, a reboot or with a new address is not another.
func (c *Claim) lonely(want subnet.Lease, kv *mvccpb.KeyValue) error {
	if kv == nil {
		return nil
	}
	var p presence
	if err := json.Unmarshal(kv.Value, &p); err != nil || p.Boot == c.terms.Boot || p.PublicIP == want.PublicIP {
		return nil //nolint:nilerr // what cannot be read proves nobody's life
	}
	return fmt.Errorf("%w: node %q runs at %s, this is %s: give one of them another --node-name (if that host is gone, this one takes over within %s)",
		ErrNameTaken, want.Node, p.PublicIP, want.PublicIP, AliveTTL)
}

// evict makes room for our public address: if its holder is gone, it returns the leases at that address, which go with the
// same transaction.
func (c *Claim) evict(ctx context.Context, want subnet.Lease, v *view, kv *mvccpb.KeyValue, t *transaction) ([]record, error) {
	if kv == nil || string(kv.Value) == want.Node {
		return nil, nil
	}
	holder := string(kv.Value)
	aliveKey := v.keys.alive(holder)
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.store.client.Get(ctx, aliveKey) })
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", holder, c.store.explain(ctx, err))
	}
	if len(answer.Kvs) > 0 {
		return nil, fmt.Errorf("%w: %s is the address of node %q, this is node %q: give --public-ip or --iface (if that host is gone, this one takes over within %s)",
			ErrAddressTaken, want.PublicIP, holder, want.Node, AliveTTL)
	}
	t.unchanged(aliveKey, 0)
	gone := slices.DeleteFunc(v.of(holder), func(r record) bool { return r.lease.PublicIP != want.PublicIP })
	if len(gone) > 0 {
		t.remove(v.keys.node(holder))
	}
	return gone, nil
}

// choose returns the lease to write: the node's own, or the only one that will do, or picked ones. What the gone had is
// free.
func (c *Claim) choose(want subnet.Lease, v *view, n subnet.Snapshot, gone []record, only []netip.Prefix, t *transaction) (subnet.Lease, error) {
	n.Leases = slices.DeleteFunc(n.Leases, func(l subnet.Lease) bool {
		return slices.ContainsFunc(gone, func(r record) bool { return string(r.kv.Key) == v.keys.subnet(l) })
	})
	own, ok := ownLease(n, want)
	if !ok {
		own, ok = mendable(v, want.Node)
	}
	whole := len(own.Subnets()) == len(v.config.Pools()) // else the network has a family more than it had
	switch {
	case ok && (only == nil && whole || slices.Equal(own.Subnets(), only)):
	case only != nil:
		own = c.Lease()
	default:
		var err error
		n.Held = append(slices.Clip(n.Held), memory(n, want)...)
		if own, err = n.Pick(want.Node); err != nil {
			return want, err
		}
	}
	kv := v.leases[v.keys.subnet(own)].kv // our own, flannel's on this machine, a gone node's, or nobody's
	t.unchanged(v.keys.subnet(own), modRevision(kv))
	if kv != nil {
		t.replaced = append(t.replaced, clientv3.LeaseID(kv.Lease))
	}
	lease := want
	lease.Subnet, lease.Subnet6 = own.Subnet, own.Subnet6
	for _, p := range lease.Subnets() {
		t.remember(v, p, want.Node)
	}
	return lease, nil
}

// memory is what the node remembers to have held, as history that the store has lost.
func memory(n subnet.Snapshot, want subnet.Lease) []subnet.Held {
	var all []subnet.Held
	for _, p := range want.Subnets() {
		if !slices.ContainsFunc(n.Held, func(h subnet.Held) bool { return h.Subnet == p }) {
			all = append(all, subnet.Held{Subnet: p, Node: want.Node})
		}
	}
	return all
}

// others is the network without the node's own leases, whatever they are worth.
func others(v *view, node string) subnet.Snapshot {
	rest := *v
	rest.leases = maps.Clone(v.leases)
	maps.DeleteFunc(rest.leases, func(_ string, r record) bool { return r.lease.Node == node })
	return rest.snapshot()
}

// mendable finds a lease of the node that is of no use as it is written (another VNI), and has subnets that would do.
func mendable(v *view, node string) (subnet.Lease, bool) {
	n := others(v, node)
	for _, r := range v.of(node) {
		if _, taken := n.Overlapping(r.lease.Subnets()...); !taken && v.config.Fits(r.lease) {
			return r.lease, true
		}
	}
	return subnet.Lease{}, false
}

// ownLease finds the node's lease, or one without a node that has its public address: flannel's, on this very machine.
func ownLease(n subnet.Snapshot, want subnet.Lease) (subnet.Lease, bool) {
	if l, ok := n.Lease(want.Node); ok {
		return l, true
	}
	for _, l := range n.Leases {
		if l.Node == "" && l.PublicIP == want.PublicIP {
			return l, true
		}
	}
	return subnet.Lease{}, false
}
