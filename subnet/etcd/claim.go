package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// Errors that [Store.Claim] keeps trying over, told to Options.Trouble.
var (
	ErrNameTaken    = errors.New("another living host has this node name")
	ErrAddressTaken = errors.New("another living host has this public address")
)

// ErrLost says that somebody else has the subnet that was ours.
var ErrLost = errors.New("the subnet is somebody else's now")

var errRace = errors.New("another host was faster")

// Terms are what a claim is made under.
type Terms struct {
	TTL  time.Duration        // how long the lease outlives its last renewal; whole seconds, at least MinTTL
	Boot string               // identifies this boot of this host
	Now  func() time.Duration // CLOCK_BOOTTIME: unlike Go's clock it counts the time in which a machine is suspended
}

// MinTTL is the shortest lease etcd can keep through a change of leader.
const MinTTL = 5 * time.Second

// AliveTTL is how long after a daemon's end its name and address count as in use.
const AliveTTL = 60 * time.Second

// Claim is a lease that is held. It is safe for concurrent use.
type Claim struct {
	store *Store
	terms Terms
	moved chan struct{} // the host has another address

	mu       sync.Mutex
	want     subnet.Lease
	lease    subnet.Lease
	config   subnet.Config
	key      string
	claim    clientv3.LeaseID
	alive    clientv3.LeaseID
	deadline time.Duration
}

// Claim takes a lease for want.Node: the one it has, or another as [subnet.Snapshot.Pick] orders; want's subnets are
// ignored. It blocks until it has one or the context ends, and tells Options.Trouble what keeps it.
func (s *Store) Claim(ctx context.Context, want subnet.Lease, terms Terms) (*Claim, error) {
	if !want.PublicIP.IsValid() || !want.MAC.IsUnicast() {
		return nil, fmt.Errorf("a lease for %s at %s with MAC %s: want an address and a MAC that peers can send to", want.Node, want.PublicIP, want.MAC)
	}
	c := &Claim{store: s, want: want, terms: terms, moved: make(chan struct{}, 1)}
	if err := s.Reach(ctx); err != nil {
		s.trouble(err)
	}
	var again retry
	for {
		err := c.acquire(ctx, nil)
		switch {
		case err == nil:
			s.trouble(nil)
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errRace):
			again.reset()
			err = sleep(ctx, rand.N(200*time.Millisecond))
		default:
			s.trouble(err)
			err = again.wait(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// Lease returns what is held.
func (c *Claim) Lease() subnet.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lease
}

// Readdress says that the host has another public address. It does not block: [Claim.Keep] tells the store, and the subnet
// stays the same. It returns false when that is known.
func (c *Claim) Readdress(public netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want.PublicIP == public || !public.IsValid() {
		return false
	}
	c.want.PublicIP = public
	select {
	case c.moved <- struct{}{}:
	default: // it has been said
	}
	return true
}

// Config returns the configuration under which the lease was taken.
func (c *Claim) Config() subnet.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config
}

// Deadline returns the moment of CLOCK_BOOTTIME before which nobody else can have got the lease.
func (c *Claim) Deadline() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// acquire makes one attempt. With only, no other subnets than those will do.
func (c *Claim) acquire(ctx context.Context, only []netip.Prefix) error {
	sent := c.terms.Now()
	claim, alive, err := c.grant(ctx)
	if err != nil {
		return err
	}
	key, lease, v, err := c.write(ctx, claim, alive, only)
	if err != nil {
		if !errors.Is(err, errUnknown) {
			c.store.revoke(ctx, claim, alive)
		}
		return err
	}
	former := c.ids()
	c.mu.Lock()
	c.key, c.lease, c.config, c.claim, c.alive = key, lease, v.config, claim, alive
	c.deadline = c.terms.deadline(sent)
	c.mu.Unlock()
	c.store.revoke(ctx, former.claim, former.alive)
	if only == nil {
		v.own = nil
		v.wrote(key, lease, claim)
		c.store.seed.Store(v)
	}
	return nil
}

// deadline leaves a margin for clocks that do not run alike: 1 % and 10 s, of short leases a tenth.
func (t Terms) deadline(sent time.Duration) time.Duration {
	return sent + t.TTL - t.TTL/100 - min(10*time.Second, t.TTL/10)
}

// grant makes the two etcd leases that a node's keys hang on.
func (c *Claim) grant(ctx context.Context) (claim, alive clientv3.LeaseID, err error) {
	var ids [2]clientv3.LeaseID
	for i, ttl := range []time.Duration{c.terms.TTL, min(AliveTTL, c.terms.TTL)} {
		answer, err := request(ctx, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
			return c.store.client.Grant(ctx, int64(ttl/time.Second))
		})
		if err != nil {
			c.store.revoke(ctx, ids[:i]...)
			return 0, 0, fmt.Errorf("ask etcd for a lease: %w", c.store.explain(ctx, err))
		}
		ids[i] = answer.ID
	}
	return ids[0], ids[1], nil
}

// revokePatience bounds the giving back of etcd leases: it must not hold up the end of the daemon.
const revokePatience = time.Second

// revoke gives etcd leases back, with the keys that hang on them. Those it cannot give back expire by themselves.
func (s *Store) revoke(ctx context.Context, ids ...clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokePatience)
	defer cancel()
	for _, id := range ids {
		if id != 0 {
			_, _ = s.client.Revoke(ctx, id)
		}
	}
}

// write picks subnets from a fresh reading of the network and writes them if nothing it relied on has changed since.
func (c *Claim) write(ctx context.Context, claim, alive clientv3.LeaseID, only []netip.Prefix) (string, subnet.Lease, *view, error) {
	s, k := c.store, c.store.keys
	c.mu.Lock()
	want := c.want
	c.mu.Unlock()
	nodeKey, vtepKey, aliveKey := k.node(want.Node), k.vtep(want.PublicIP), k.alive(want.Node)
	v, err := s.read(ctx, nil, nodeKey, vtepKey, aliveKey)
	if err != nil {
		return "", subnet.Lease{}, nil, err
	}
	network := v.snapshot()
	if own, ok := network.Lease(want.Node); only != nil && (!ok || !slices.Equal(own.Subnets(), only)) {
		n := others(v, want.Node)
		n.Skipped = nil // what cannot be read takes nothing from who holds it
		if holder, taken := n.Overlapping(only...); taken {
			return "", subnet.Lease{}, nil, fmt.Errorf("%w: %s is covered by %s", ErrLost, only, holder)
		}
	}
	if err := c.lonely(want, v.own[aliveKey]); err != nil {
		return "", subnet.Lease{}, nil, err
	}
	t := transaction{claim: claim, alive: alive}
	t.unchanged(k.config(), v.configRev)
	t.unchanged(nodeKey, modRevision(v.own[nodeKey]))
	t.unchanged(vtepKey, modRevision(v.own[vtepKey]))
	gone, err := c.evict(ctx, want, v, v.own[vtepKey], &t)
	if err != nil {
		return "", subnet.Lease{}, nil, err
	}
	lease, err := c.choose(want, v, network, gone, only, &t)
	if err != nil {
		return "", lease, nil, err
	}
	if kv := v.own[aliveKey]; kv != nil {
		t.replaced = append(t.replaced, clientv3.LeaseID(kv.Lease))
	}
	key := k.subnet(lease)
	for _, r := range append(v.of(want.Node), gone...) { // one lease a node, and none for a gone one
		t.replaced = append(t.replaced, clientv3.LeaseID(r.kv.Lease))
		if name := string(r.kv.Key); name != key {
			t.unchanged(name, r.kv.ModRevision)
			t.remove(name)
		}
	}
	t.put(key, encodeLease(lease, v.config.Backend.VNI), claim)
	t.put(nodeKey, leaseName(lease), claim)
	t.put(vtepKey, lease.Node, claim)
	t.put(aliveKey, encode(presence{Boot: c.terms.Boot, PublicIP: lease.PublicIP}), alive)
	if err := t.commit(ctx, s, nodeKey); err != nil {
		return "", lease, nil, err
	}
	s.revoke(ctx, t.replaced...)
	return key, lease, v, nil
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
	switch {
	case ok && (only == nil || slices.Equal(own.Subnets(), only)):
	case only != nil:
		own = c.Lease()
	default:
		var err error
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
