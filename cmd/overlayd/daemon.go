package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// runDaemon keeps this host in the network until the context ends. What it made in the kernel stays: pods go on talking
// while it restarts.
func runDaemon(ctx context.Context, o *options, _ []string, _ io.Writer) error {
	debug.SetGCPercent(gcPercent)
	for _, dir := range []string{o.runDir, o.stateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
	}
	lock, err := takeLock(o.runDir)
	if err != nil {
		return err
	}
	defer lock.release()
	host, err := look(o.kernel(0)) // before anything else: without an uplink there is nothing to say to etcd
	if err != nil {
		return err
	}
	w := newWitness(o, host)
	klog.Infof("overlayd %s: node %s, uplink %s %s, etcd %v %s", release, o.node, host.Uplink.Name, host.Uplink.Addr, o.store.Endpoints, o.store.Prefix)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, o, w) })
	group.Go(func() error { return join(ctx, o, w) })
	group.Go(func() error { return w.installCNI(ctx) })
	err = group.Wait()
	notify(sd.SdNotifyStopping)
	if errors.Is(err, context.Canceled) {
		klog.Info("stopped; the network stays as it is (overlayd uninstall removes it)")
		return nil
	}
	return err
}

// gcPercent keeps a daemon in a network of 5,000 below 64 MiB. A pass makes much garbage in a moment, and then there is none
// for half a minute; half of this would cost a third of the time of a large one.
const gcPercent = 70

// look reads the machine once.
func look(o kernel.Options) (backend.Host, error) {
	k, err := kernel.Open(o)
	if err != nil {
		return backend.Host{}, err
	}
	host, _, err := k.Read()
	return host, errors.Join(err, k.Close())
}

// session is one daemon's life.
type session struct {
	options *options
	witness *witness
	group   *errgroup.Group
	saved   subnet.Snapshot // the network as the daemon before knew it, if there was one
	live    chan struct{}   // closed when the store has told the configuration

	mu   sync.Mutex
	loop *backend.Reconciler // nil until the configuration is known
}

// join takes a lease and keeps the kernel as the network wants it. While the store does not answer, what it last said is
// kept instead.
func join(ctx context.Context, o *options, w *witness) error {
	group, ctx := errgroup.WithContext(ctx)
	s := &session{options: o, witness: w, group: group, live: make(chan struct{})}
	network, known := loadNetwork(o.stateDir, o.store.Prefix)
	if known {
		s.saved = network
		group.Go(func() error { return s.remember(ctx) })
	}
	group.Go(func() error { return s.follow(ctx) })
	return group.Wait()
}

// patience is how long the store may take to answer before the saved network is used.
const patience = time.Second

// remember programs the saved network if the store is not there.
func (s *session) remember(ctx context.Context) error {
	network := s.saved
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.live:
		return nil
	case <-time.After(patience):
	}
	own, ok := network.Lease(s.options.node)
	if !ok {
		return nil
	}
	loop, _, err := s.begin(ctx, network.Config)
	if err != nil {
		return err
	}
	klog.Warningf("the store does not answer: keeping the network as it was at revision %d, %s", network.Revision, own)
	select {
	case <-s.live: // just now
	default:
		s.witness.remembered(network, own)
		loop.Want(network)
	}
	return nil
}

// follow does what the store says.
func (s *session) follow(ctx context.Context) error {
	o, w := s.options, s.witness
	options := o.store
	options.Trouble = w.trouble
	store, err := etcd.Open(options)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // nothing is left to be said to etcd
	w.opened(store)
	config, err := awaitConfig(ctx, store, w)
	if err != nil {
		return err
	}
	close(s.live)
	loop, host, err := s.begin(ctx, config)
	if err != nil {
		return err
	}
	for !host.Uplink.Addr.IsValid() { // the loop runs already, and has not seen the uplink yet
		if host, err = look(o.kernel(config.Backend.VNI)); err != nil {
			w.trouble(err)
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	b := &belief{grace: o.massGrace, settled: s.saved, tell: func(n subnet.Snapshot) {
		if n = w.own(n); !w.agrees(n.Config) {
			return
		}
		w.heard(n)
		loop.Want(n)
	}}
	defer b.end()
	h := &holder{options: o, witness: w, store: store, want: o.lease(config, host), tellAgain: b.repeat, kick: loop.Kick}
	if err := h.take(ctx, s.saved, host); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return store.Watch(ctx, func(n subnet.Snapshot) {
			w.listed(n)
			b.hear(n)
		})
	})
	group.Go(func() error { return h.keep(ctx) })
	group.Go(func() error { return w.save(ctx) })
	group.Go(func() error { return w.inspect(ctx, store) })
	return group.Wait()
}

// begin starts the loop over the kernel, or returns the one that runs.
func (s *session) begin(ctx context.Context, config subnet.Config) (*backend.Reconciler, backend.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loop != nil {
		return s.loop, s.loop.Status().Host, nil
	}
	options := s.options.kernel(config.Backend.VNI)
	options.Ear = new(kernel.Ear)
	k, err := kernel.Open(options)
	if err != nil {
		return nil, backend.Host{}, err
	}
	host, _, err := k.Read()
	if err == nil {
		err = s.options.apart(config, host)
	}
	if err != nil {
		return nil, host, errors.Join(err, k.Close())
	}
	s.loop = backend.NewReconciler(k, backend.DefaultPace(), s.witness.passed)
	s.group.Go(func() error { return errors.Join(s.loop.Run(ctx), k.Close()) })
	s.group.Go(func() error {
		near := kernel.Near{Route: s.witness.near, VTEP: s.witness.isVTEP}
		return options.Ear.Watch(ctx, near, s.loop.Kick, func(err error) { klog.Warningf("kernel events: %v", err) })
	})
	s.group.Go(func() error {
		uplink := func() string { return s.loop.Status().Host.Uplink.Name }
		return kernel.WatchKnobs(ctx, options, uplink, s.loop.Kick)
	})
	return s.loop, host, nil
}

// awaitConfig returns the network's configuration as soon as there is one.
func awaitConfig(ctx context.Context, store *etcd.Store, w *witness) (subnet.Config, error) {
	if err := store.Reach(ctx); err != nil {
		w.trouble(etcd.Cause(err))
	}
	for {
		text, err := store.Config(ctx)
		if err == nil {
			var c subnet.Config
			if c, err = subnet.ParseConfig([]byte(text)); err == nil {
				w.trouble(nil)
				return c, nil
			}
		}
		if ctx.Err() != nil {
			return subnet.Config{}, ctx.Err()
		}
		w.trouble(etcd.Cause(err))
		if err := pause(ctx); err != nil {
			return subnet.Config{}, err
		}
	}
}

const pauseBeforeRetry = time.Second

func pause(ctx context.Context) error { return pauseFor(ctx, pauseBeforeRetry) }

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// apart refuses a pool that takes away what the host already reaches. A connected prefix that is a host's subnet of the
// pool is a bridge that somebody brought: docker's with --bip, or flannel's.
func (o *options) apart(c subnet.Config, h backend.Host) error {
	for _, p := range c.Pools() {
		for _, connected := range h.Connected {
			brought := p.Contains(connected) && connected.Bits() >= p.SubnetLen
			if p.Network.Overlaps(connected) && !brought {
				return fmt.Errorf("the network %s overlaps %s, to which this host is connected: choose another Network (overlayd config set)", p.Network, connected)
			}
		}
		for _, a := range append(o.endpoints(), h.Gateways...) {
			if p.Network.Contains(a) {
				return fmt.Errorf("the network %s holds %s, which this host needs outside of it (etcd or a gateway): choose another Network (overlayd config set)", p.Network, a)
			}
		}
	}
	return nil
}

// endpoints are those of etcd's that are given as addresses.
func (o *options) endpoints() []netip.Addr {
	var all []netip.Addr
	for _, e := range o.store.Endpoints {
		if u, err := url.Parse(e); err == nil {
			if a, err := netip.ParseAddr(u.Hostname()); err == nil {
				all = append(all, a.Unmap())
			}
		}
	}
	return all
}

// lease is what this host wants to hold; the subnets are for the store to find.
func (o *options) lease(c subnet.Config, h backend.Host) subnet.Lease {
	return subnet.Lease{Node: o.node, PublicIP: o.public(h), MAC: subnet.VTEPMAC(c.Backend.VNI, o.node), Backend: c.Backend.Type}
}

// public is the address to which peers send.
func (o *options) public(h backend.Host) netip.Addr {
	if o.choice.PublicIP.IsValid() {
		return o.choice.PublicIP
	}
	return h.Uplink.Addr
}

// settleTime is enough for hosts of a wiped store to notice that they are connected to another one.
const settleTime = 10 * time.Second

func terms(o *options) etcd.Terms {
	return etcd.Terms{TTL: o.leaseTTL, Boot: bootID(), Now: bootTime, Settle: settleTime}
}

// bootTime is the time since boot, that in which the machine was suspended included.
func bootTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // cannot happen since Linux 2.6.39
	}
	return time.Duration(now.Nano())
}

func notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		klog.Warningf("tell systemd %q: %v", state, err)
	}
}
