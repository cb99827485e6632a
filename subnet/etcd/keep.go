package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	claimEvery = 60 * time.Second // renewal of the claim
	aliveEvery = 20 * time.Second
	probeEvery = 30 * time.Second // a wiped store keeps its watchers waiting in silence: somebody has to look
	probeSoon  = 2 * time.Second  // after a connection was made: the server may have been wiped and started again

	clockEvery = 2 * time.Second
	clockLeap  = 15 * time.Second // of CLOCK_BOOTTIME between two looks: we were stopped, or the machine was suspended
)

// errGone says that etcd no longer has what we hold. It is taken back at once.
var errGone = errors.New("etcd has lost our lease")

// Keep holds the claim until the context ends, and returns its error, or until somebody else has the subnet: [ErrLost].
// It calls renewed whenever the deadline has moved. Renewing writes no key, so no other host hears of it. A lease that
// expired in an outage or was wiped is taken back.
func (c *Claim) Keep(ctx context.Context, renewed func()) error {
	pause := func(d time.Duration) time.Duration { return jitter(min(d, c.terms.TTL/3)) }
	claim, alive, clock := time.NewTicker(pause(claimEvery)), time.NewTicker(pause(aliveEvery)), time.NewTicker(clockEvery)
	defer claim.Stop()
	defer alive.Stop()
	defer clock.Stop()
	probe := time.NewTimer(pause(probeEvery))
	defer probe.Stop()
	looked := c.terms.Now()
	var again retry
	var back <-chan time.Time // when the lease is to be taken back; nil while it is held
	troubled := false
	for {
		before := c.Deadline()
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-claim.C:
			err = c.renew(ctx)
		case <-alive.C:
			if err = c.live(ctx); errors.Is(err, errGone) { // it is short: no reason to doubt the store
				back = time.After(0)
				continue
			}
		case <-clock.C:
			before := looked
			if looked = c.terms.Now(); looked-before < clockLeap {
				continue
			}
			nudge(c.store.resumed) // whatever we knew is old
			err = c.renew(ctx)
		case <-c.store.reconnected.keeper:
			probe.Reset(pause(probeSoon))
			continue
		case <-probe.C:
			probe.Reset(pause(probeEvery))
			err = c.probe(ctx)
		case <-c.moved:
			c.store.conns.drop() // they may come from the address that is gone
			back = time.After(0)
			continue
		case <-back:
			back = nil
			if err = c.regain(ctx); err != nil && !errors.Is(err, ErrLost) {
				back = time.After(again.next()) // what is still held is renewed meanwhile
			}
		}
		switch {
		case errors.Is(err, ErrLost):
			return err
		case errors.Is(err, errGone):
			c.store.lost()
			if back == nil {
				back = time.After(0)
			}
		case err != nil && ctx.Err() == nil && !errors.Is(err, errRace):
			troubled = true
			c.store.trouble(err)
		case err == nil && back == nil:
			again.reset()
			if troubled {
				troubled = false
				c.store.trouble(nil)
			}
			if c.Deadline() != before {
				renewed()
			}
		}
	}
}

// lost makes the watch list again: where our lease has vanished, others may have.
func (s *Store) lost() { nudge(s.doubt) }

type leaseIDs struct{ claim, alive clientv3.LeaseID }

// ids returns the etcd leases on which our keys hang, and then those on which they may hang instead.
func (c *Claim) ids() []leaseIDs {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]leaseIDs{{c.claim, c.alive}}, c.unsure...)
}

// renew moves the deadline, if whatever the keys may hang on is renewed.
func (c *Claim) renew(ctx context.Context) error {
	sent := c.terms.Now()
	for _, ids := range c.ids() {
		if err := c.store.keepAlive(ctx, ids.claim); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = c.terms.deadline(sent)
	return nil
}

// live renews the sign of life.
func (c *Claim) live(ctx context.Context) error {
	for _, ids := range c.ids() {
		if err := c.store.keepAlive(ctx, ids.alive); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) keepAlive(ctx context.Context, id clientv3.LeaseID) error {
	once := func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error) {
		return s.client.KeepAliveOnce(ctx, id)
	}
	old := s.token.current()
	_, err := request(ctx, once)
	if stale(err) && s.token != nil { // a stream says so too late for the interceptor
		if err = s.token.renew(ctx, old); err == nil {
			_, err = request(ctx, once)
		}
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("renew the lease: %w", s.explain(ctx, err))
	}
	return nil
}

// probe reads our own key, which must hang on our own etcd lease.
func (c *Claim) probe(ctx context.Context) error {
	c.mu.Lock()
	key, id := c.key, c.claim
	c.mu.Unlock()
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.store.client.Get(ctx, key) })
	if err != nil {
		return fmt.Errorf("look for our lease: %w", c.store.explain(ctx, err))
	}
	if len(answer.Kvs) == 0 || clientv3.LeaseID(answer.Kvs[0].Lease) != id {
		return errGone
	}
	return nil
}

// Regain makes one attempt to take the same subnets back after [ErrLost], which it returns while somebody else has them, or
// to take them first after [Store.Former]. It blocks for at most the time of a few requests.
func (c *Claim) Regain(ctx context.Context) error { return c.regain(ctx) }

// regain takes the same subnets back, or tells the store of another address.
func (c *Claim) regain(ctx context.Context) error {
	err := c.acquire(ctx, c.Lease().Subnets())
	if errors.Is(err, ErrNameTaken) {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}
