package etcd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/subnet"
)

// Listing is the network for an admin: the leases, and of each how it stands.
type Listing struct {
	subnet.Snapshot
	Standing map[string]Standing // by [subnet.Lease.String]
}

// Standing is how a lease stands.
type Standing struct {
	Alive   bool          // its node's daemon runs, or did within [AliveTTL]
	Foreign bool          // of a host that runs flannel
	Endless bool          // it hangs on no etcd lease: flannel's way to reserve a subnet
	Left    time.Duration // until it expires; 0 for a lease that is alive or endless
}

// timesAtOnce bounds how many leases are asked for at the same time.
const timesAtOnce = 16

// Standings lists the network. It blocks for at most the time of a few requests, and one for each lease whose daemon does
// not run.
func (s *Store) Standings(ctx context.Context) (Listing, error) {
	v, err := s.read(ctx, nil)
	if err == nil {
		v.reserved, err = s.reservations(ctx, v.revision)
	}
	if err != nil {
		return Listing{}, err
	}
	alive := map[string]bool{}
	err = s.pages(ctx, s.keys.alives(), v.revision, nil, true, func(kv *mvccpb.KeyValue) {
		alive[strings.TrimPrefix(string(kv.Key), s.keys.alives())] = true
	})
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Snapshot: v.snapshot(), Standing: map[string]Standing{}}
	all := make([]Standing, len(l.Leases))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(timesAtOnce)
	for i, lease := range l.Leases {
		id := clientv3.LeaseID(v.leases[s.keys.subnet(lease)].kv.Lease)
		all[i] = Standing{Alive: alive[lease.Node] && lease.Node != "", Foreign: lease.Node == "", Endless: id == 0}
		if all[i].Alive || all[i].Endless {
			continue
		}
		group.Go(func() (err error) {
			all[i].Left, err = s.left(ctx, id)
			return err
		})
	}
	err = group.Wait()
	for i, lease := range l.Leases {
		l.Standing[lease.String()] = all[i]
	}
	return l, err
}

// left returns for how long an etcd lease still lasts.
func (s *Store) left(ctx context.Context, id clientv3.LeaseID) (time.Duration, error) {
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.LeaseTimeToLiveResponse, error) {
		return s.client.TimeToLive(ctx, id)
	})
	if err != nil {
		return 0, fmt.Errorf("ask how long a lease lasts: %w", s.explain(ctx, err))
	}
	return max(0, time.Duration(answer.TTL)*time.Second), nil
}
