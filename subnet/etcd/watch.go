package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/overlayd/overlayd/subnet"
)

// listAgain bounds what a watch could miss without saying so.
const listAgain = 10 * time.Minute

// maxOps is how many operations etcd takes in one transaction, unless told otherwise.
const maxOps = 128

// lookEvery is how often the state of the connection is looked at.
const lookEvery = 2 * time.Second

// Snapshots are made at most one part in restFactor of the time: a burst of writes is one snapshot.
const restFactor = 3

var (
	errListAgain = errors.New("time to list again")
	errOther     = errors.New("the store was wiped or restored: listing again")
	errBroken    = errors.New("the watch ended without saying why")
	errNoConfig  = errors.New("the network configuration was deleted")
)

// Watch calls each with the whole network, and again after every change, until the context ends; it returns the context's
// error. Whatever puts a watch in doubt (an error, a compaction, its end) makes it list again. each is called from one
// goroutine at a time, never with a partial network, and not before there is a configuration.
func (s *Store) Watch(ctx context.Context, each func(subnet.Snapshot)) error {
	var again retry
	var last *view
	for {
		listed := false
		var err error
		last, err = s.watch(ctx, last, func(n subnet.Snapshot) {
			if !listed {
				listed = true
				again.reset()
				s.trouble(nil)
			}
			each(n)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, errListAgain) {
			s.trouble(err)
		}
		if err := again.wait(ctx); err != nil {
			return err
		}
	}
}

// watch lists and watches until there is doubt, and returns what it knew last.
func (s *Store) watch(ctx context.Context, last *view, each func(subnet.Snapshot)) (*view, error) {
	var err error
	v := s.seed.Swap(nil)
	if v == nil || last != nil { // the seed is for the first time only: later there is a reason to list
		if last != nil {
			if err := sleep(ctx, Spread(len(last.leases))); err != nil {
				return last, err
			}
		}
		if v, err = s.read(ctx, last); err != nil {
			return last, err
		}
	}
	v.doubt = v.doubt || last != nil && last.doubt
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	config := s.client.Watch(ctx, s.keys.config(), clientv3.WithRev(v.revision+1))
	leases := s.client.Watch(ctx, s.keys.subnets(), clientv3.WithPrefix(), clientv3.WithRev(v.revision+1))
	relist := time.NewTimer(jitter(listAgain))
	defer relist.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	probe := time.NewTimer(jitter(probeEvery))
	defer probe.Stop()
	var rested time.Time // when the next snapshot may be made
	var down bool        // the connection, when it was last looked at
	for {
		select {
		case <-relist.C:
			return v, errListAgain
		case <-s.resumed:
			return v, errListAgain
		case <-s.doubt:
			v.doubt = true
			return v, errOther
		case <-look.C:
			down = s.look(ctx, down)
			continue
		case <-s.reconnected.watcher:
			probe.Reset(jitter(probeSoon))
			continue
		case <-probe.C:
			if err := s.same(ctx, v); err != nil {
				v.doubt = errors.Is(err, errOther)
				return v, err
			}
			probe.Reset(jitter(probeEvery))
			continue
		case <-due.C:
			start := time.Now()
			if err := s.reread(ctx, v); err != nil {
				return v, err
			}
			each(v.snapshot())
			v.doubt = false // it is a matter of the first list
			rested = time.Now().Add(restFactor * time.Since(start))
			continue
		case answer, ok := <-config:
			err = v.take(answer, ok)
		case answer, ok := <-leases:
			err = v.take(answer, ok)
		}
		if err != nil {
			return v, err
		}
		due.Reset(time.Until(rested))
	}
}

// reread looks up how leases went that are gone: expired, or given up on purpose. History is not watched.
func (s *Store) reread(ctx context.Context, v *view) error {
	var ops []clientv3.Op
	for _, l := range v.gone {
		for _, p := range l.Subnets() {
			ops = append(ops, clientv3.OpGet(s.keys.history(p)))
		}
	}
	for part := range slices.Chunk(ops, maxOps) {
		answer, err := request(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return s.client.Txn(ctx).Then(part...).Commit()
		})
		if err != nil {
			return fmt.Errorf("look up who gave a lease up: %w", s.explain(ctx, err))
		}
		for _, r := range answer.Responses {
			for _, kv := range r.GetResponseRange().Kvs {
				v.remember(kv)
			}
		}
	}
	v.gone = nil
	return nil
}

// same says whether the store is still the one that was listed. One that was wiped or restored from a backup starts again
// at a smaller revision, and leaves watches waiting in silence for it to grow.
func (s *Store) same(ctx context.Context, v *view) error {
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.client.Get(ctx, s.keys.config()) })
	if err != nil {
		return fmt.Errorf("look for the network configuration: %w", s.explain(ctx, err))
	}
	created := int64(0)
	if len(answer.Kvs) > 0 {
		created = answer.Kvs[0].CreateRevision
	}
	if answer.Header.Revision < v.revision || !errors.Is(v.badConfig, errNoConfig) && created != v.configCreated {
		return errOther
	}
	return nil
}

// look tells of a connection that goes down or comes up, and says which it is: a watch only waits.
func (s *Store) look(ctx context.Context, wasDown bool) bool {
	if s.client.ActiveConnection().GetState() == connectivity.Ready {
		if wasDown {
			s.trouble(nil)
		}
		return false
	}
	if err := s.Reach(ctx); err != nil && ctx.Err() == nil {
		s.trouble(err)
		return true
	}
	return wasDown
}

// take brings the view up to date with a watch's answer.
func (v *view) take(answer clientv3.WatchResponse, ok bool) error {
	if !ok {
		return errBroken
	}
	if err := answer.Err(); err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	for _, e := range answer.Events {
		key := string(e.Kv.Key)
		switch {
		case key == v.keys.config() && e.Type == clientv3.EventTypePut:
			if v.setConfig(e.Kv, v) == nil {
				return errListAgain // every lease may mean something else under it
			}
		case key == v.keys.config():
			v.badConfig = errNoConfig
		case e.Type == clientv3.EventTypePut:
			v.put(e.Kv)
		default:
			v.gone = append(v.gone, v.leases[key].lease)
			delete(v.leases, key)
		}
	}
	v.revision = max(v.revision, answer.Header.Revision)
	return nil
}
