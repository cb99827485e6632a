package etcd

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// Config returns the text of the network's configuration. [ErrNoConfig] when there is none.
func (s *Store) Config(ctx context.Context) (string, error) {
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.client.Get(ctx, s.keys.config()) })
	if err != nil {
		return "", fmt.Errorf("read the network configuration: %w", s.explain(ctx, err))
	}
	if len(answer.Kvs) == 0 {
		return "", s.noConfig()
	}
	return string(answer.Kvs[0].Value), nil
}

// Configure writes the network's configuration, if it is a valid one and every host that has a lease can stay in the
// network.
func (s *Store) Configure(ctx context.Context, text string) error {
	c, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		return err
	}
	var unchanged []clientv3.Cmp
	if v, err := s.read(ctx, &view{}); err == nil { // without a network, or with one that cannot be read, nobody is in the way
		if err := v.snapshot().Admits(c); err != nil {
			return fmt.Errorf("%w: release those leases first, or give --force and they lose their network", err)
		}
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(s.keys.config()), "=", v.configSeen))
	}
	return s.putConfig(ctx, text, unchanged)
}

// ConfigureAnyway writes a valid configuration whatever becomes of the hosts that have leases.
func (s *Store) ConfigureAnyway(ctx context.Context, text string) error {
	if _, err := subnet.ParseConfig([]byte(text)); err != nil {
		return err
	}
	return s.putConfig(ctx, text, nil)
}

func (s *Store) putConfig(ctx context.Context, text string, unchanged []clientv3.Cmp) error {
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).If(unchanged...).Then(clientv3.OpPut(s.keys.config(), text)).Commit()
	})
	if err != nil {
		return fmt.Errorf("write the network configuration: %w", s.explain(ctx, err))
	}
	if !answer.Succeeded {
		return errors.New("somebody else has just set the network configuration: look at it and set yours again")
	}
	return nil
}
