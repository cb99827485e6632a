package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

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

// raceJitter keeps those who lost a race from racing in step.
const raceJitter = 200 * time.Millisecond

var errRace = errors.New("another host was faster")

// Terms are what a claim is made under.
type Terms struct {
	TTL  time.Duration        // how long the lease outlives its last renewal; whole seconds, at least MinTTL
	Boot string               // identifies this boot of this host
	Now  func() time.Duration // CLOCK_BOOTTIME: unlike Go's clock it counts the time in which a machine is suspended

	// Settle is how long a host that never held a lease waits in a store that no host has used yet: it may have been
	// wiped, and then the hosts of the network get the time to put their leases back. 0 does not wait. [Store.Found]
	// makes it unnecessary.
	Settle time.Duration
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
	evicted  []subnet.Lease // those that had to go for it
	network  *view          // our own lease under the configuration in which it was taken
	key      string
	claim    clientv3.LeaseID
	alive    clientv3.LeaseID
	unsure   []leaseIDs // of writes with an unknown outcome: the keys may hang on any of them
	deadline time.Duration
}

// Claim takes a lease for want.Node: the one it has, or another as [subnet.Snapshot.Pick] orders. Want's own subnets, if it
// has any, are what the node remembers to have held: it gets them if the store knows of nobody who had them since. It blocks
// until it has a lease or the context ends, and tells Options.Trouble what keeps it.
func (s *Store) Claim(ctx context.Context, want subnet.Lease, terms Terms) (*Claim, error) {
	if !want.PublicIP.IsValid() || !want.MAC.IsUnicast() {
		return nil, fmt.Errorf("a lease for %s at %s with MAC %s: want an address and a MAC that peers can send to", want.Node, want.PublicIP, want.MAC)
	}
	c := s.Former(want, terms)
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
			err = sleep(ctx, rand.N(raceJitter))
		case errors.Is(err, ErrSettling):
			s.trouble(err)
			err = sleep(ctx, jitter(settleLook))
		default:
			s.trouble(err)
			err = again.wait(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// Former returns the claim to the lease that a node held before, to be taken by [Claim.Regain]: that or none. It is for a
// node that cannot change its subnet, because pods have addresses in it.
func (s *Store) Former(lease subnet.Lease, terms Terms) *Claim {
	return &Claim{store: s, want: lease, lease: lease, terms: terms, moved: make(chan struct{}, 1)}
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
	nudge(c.moved)
	return true
}

// Config returns the configuration under which the lease was taken.
func (c *Claim) Config() subnet.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.network.config
}

// Evicted returns the leases of hosts that are gone which had our public address. They went when ours was taken.
func (c *Claim) Evicted() []subnet.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evicted
}

// Deadline returns the moment of CLOCK_BOOTTIME before which nobody else can have got the lease.
func (c *Claim) Deadline() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// acquire makes one attempt. With only, no other subnets than those will do.
func (c *Claim) acquire(ctx context.Context, only []netip.Prefix) error {
	b, err := c.bid(ctx, only)
	if err != nil {
		return err
	}
	sent := c.terms.Now()
	claim, alive, err := c.grant(ctx)
	if err != nil {
		return err
	}
	if err := b.write(ctx, c, claim, alive); err != nil {
		if errors.Is(err, errUnknown) {
			c.mu.Lock()
			c.unsure = append(c.unsure, leaseIDs{claim, alive})
			c.mu.Unlock()
		} else {
			c.store.revoke(ctx, claim, alive)
		}
		return err
	}
	key := c.store.keys.subnet(b.lease)
	former := c.ids()
	b.view.own = nil
	b.view.wrote(key, b.lease, claim)
	c.mu.Lock()
	c.key, c.lease, c.evicted, c.claim, c.alive, c.unsure = key, b.lease, b.evicted(), claim, alive, nil
	c.network = b.view.only(key)
	c.deadline = c.terms.deadline(sent)
	c.mu.Unlock()
	for _, ids := range former { // what was unknown is known: no other write can succeed any more
		b.t.replaced = append(b.t.replaced, ids.claim, ids.alive)
	}
	c.store.revoke(ctx, b.t.replaced...)
	if former[0].claim == 0 { // a watch begins soon
		c.store.seed.Store(b.view)
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

// revokePatience bounds the giving back of etcd leases once the context has ended: it must not hold up the end of the daemon.
const revokePatience = time.Second

// revoke gives etcd leases back, with the keys that hang on them. Those it cannot give back expire by themselves.
func (s *Store) revoke(ctx context.Context, ids ...clientv3.LeaseID) {
	ended := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ended), requestTimeout)
	defer cancel()
	defer context.AfterFunc(ended, func() { time.AfterFunc(revokePatience, cancel) })()
	for i, id := range ids {
		if id != 0 && !slices.Contains(ids[:i], id) {
			_, _ = s.client.Revoke(ctx, id)
		}
	}
}
