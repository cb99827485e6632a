package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// holder holds this host's lease, and decides what becomes of the host when somebody else has got its subnet. While pods
// have addresses in it the host takes no other: it would have to take their addresses away.
type holder struct {
	options   *options
	witness   *witness
	store     *etcd.Store
	want      subnet.Lease
	tellAgain func() // what is believed
	kick      func() // the loop
	claim     *etcd.Claim
}

// take takes the lease with which this daemon begins. It blocks until there is one, or until it is known that somebody else
// has the subnet in which this host has pods.
func (h *holder) take(ctx context.Context, saved subnet.Snapshot, host backend.Host) error {
	if err := pauseFor(ctx, etcd.Spread(len(saved.Leases))); err != nil {
		return err
	}
	former, known := saved.Lease(h.want.Node)
	if known {
		h.want.Subnet, h.want.Subnet6 = former.Subnet, former.Subnet6
	}
	if !known || h.options.allowResubnet || !inUse(former, host) {
		return h.fresh(ctx)
	}
	h.claim = h.store.Former(h.want, terms(h.options))
	for {
		err := h.claim.Regain(ctx)
		switch {
		case err == nil:
			h.claimed()
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, etcd.ErrLost):
			h.witness.lost(h.claim.Lease(), err)
			return nil
		}
		h.witness.trouble(etcd.Cause(err))
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// inUse says whether a pod has an address of the lease.
func inUse(l subnet.Lease, host backend.Host) bool {
	for _, pod := range host.Pods {
		for _, a := range pod.Addrs {
			if l.Subnet.Contains(a) || l.Subnet6.Contains(a) {
				return true
			}
		}
	}
	return false
}

// fresh takes a lease, with whatever subnet there is.
func (h *holder) fresh(ctx context.Context) error {
	claim, err := h.store.Claim(ctx, h.want, terms(h.options))
	if err != nil {
		return err
	}
	h.claim = claim
	h.claimed()
	return nil
}

// claimed says that the lease is held.
func (h *holder) claimed() {
	klog.Infof("lease: %s", h.claim.Lease())
	for _, l := range h.claim.Evicted() {
		klog.Warningf("lease: %s had the address %s and is gone: its lease of %s is released", l.Owner(), l.PublicIP, words(l.Subnets()))
	}
	h.witness.claimed(h.claim)
}

// keep holds the lease until the context ends.
func (h *holder) keep(ctx context.Context) error {
	if h.witness.isFenced() {
		if err := h.recover(ctx); err != nil {
			return err
		}
	}
	for {
		err := h.claim.Keep(ctx, h.witness.renewed)
		if !errors.Is(err, etcd.ErrLost) {
			return err
		}
		h.witness.lost(h.claim.Lease(), err)
		h.tellAgain()
		if err := h.recover(ctx); err != nil {
			return err
		}
	}
}

// recover waits until the subnet is ours again, or until no pod needs it and there is another.
func (h *holder) recover(ctx context.Context) error {
	for {
		h.kick()
		if err := pause(ctx); err != nil {
			return err
		}
		err := h.claim.Regain(ctx)
		if errors.Is(err, etcd.ErrLost) && (h.options.allowResubnet || !h.witness.hasPods(h.claim.Lease())) {
			klog.Warningf("lease: giving %s up for a free subnet", words(h.claim.Lease().Subnets()))
			h.want.Subnet, h.want.Subnet6, h.want.PublicIP = netip.Prefix{}, netip.Prefix{}, h.witness.public()
			if err = h.fresh(ctx); err != nil {
				return err
			}
			h.tellAgain()
			return nil
		}
		switch {
		case err == nil:
			h.claimed()
			h.tellAgain()
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, etcd.ErrLost):
			h.witness.trouble(nil)
		default:
			h.witness.trouble(etcd.Cause(err))
		}
	}
}

// hasPods says whether a pod has an address of the lease, as the kernel was last read.
func (w *witness) hasPods(l subnet.Lease) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return inUse(l, w.host)
}

// own returns the network with what this host holds in it. Cut off from its subnet, the host has no peers: their answers
// would go to whoever has the subnet now.
func (w *witness) own(n subnet.Snapshot) subnet.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, _, ok := w.lease()
	switch {
	case !ok:
	case w.fenced.Why != "":
		n.Leases, n.Missing = []subnet.Lease{l}, nil
	default:
		n = n.With(l)
	}
	return n
}

// lost is told that somebody else has the subnet of l, which was ours.
func (w *witness) lost(l subnet.Lease, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claim, w.former, w.ends = nil, l, 0
	w.fenced.set(err)
	w.store.set(nil) // it has just said so
	w.writeFiles()
	klog.Errorf("lease: %v: pods here reach each other and no other host; another subnet is taken when the last of them has gone, or at once with --allow-resubnet", err)
}

// public is the address to which peers send, as the kernel was last read.
func (w *witness) public() netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.options.public(w.host)
}

func (w *witness) isFenced() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fenced.Why != ""
}

// claimed is told that the lease is held.
func (w *witness) claimed(c *etcd.Claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claim = c
	if w.fenced.set(nil) {
		klog.Infof("lease: back in the network with %s", words(c.Lease().Subnets()))
	}
	w.store.set(nil)
	if slices.Equal(c.Lease().Subnets(), w.loop.Subnets) { // the plugin may know at once how long the lease lasts
		w.writeFiles()
	}
}
