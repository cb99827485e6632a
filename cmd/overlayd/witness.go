package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/renameio/v2"
	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// witness hears of everything that happens, tells it to the log, to systemd and to the node file, and knows how things
// stand. It is safe for concurrent use.
type witness struct {
	options *options
	started time.Time

	mu       sync.Mutex
	host     backend.Host
	claim    *etcd.Claim   // nil while there is none
	former   subnet.Lease  // while there is no claim: the saved one, or the one that was lost
	ends     time.Duration // of the former one, as the daemon before has known it; 0: not known
	last     subnet.Snapshot
	unsaved  chan struct{} // the network has changed since it was saved
	served   chan struct{} // closed when pods can be attached
	loop     backend.Status
	repairs  map[string]int // rows that somebody else had changed, by kind
	weak     string         // what is known against the etcd servers
	security etcd.Security  // as last looked at
	ready    bool           // systemd has been told
	store    fault          // etcd
	fenced   fault          // the subnet is somebody else's
	apart    fault          // the configuration was changed to one that takes from this host what it needs
	unlisted fault          // the store does not show our lease as one that peers can use
	files    fault          // the node file cannot be written
	tls      fault          // certificates on disk are not in use
	expiry   fault          // our certificate ends soon
	nodeFile []byte
	faults   map[string]bool // those that the log has
}

// fault is something that does not work, and since when. The zero fault works.
type fault struct {
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
}

func newWitness(o *options, h backend.Host) *witness {
	return &witness{options: o, started: time.Now(), host: h, faults: map[string]bool{}, repairs: map[string]int{}, unsaved: make(chan struct{}, 1), served: make(chan struct{})}
}

// set records an error or its end, and says whether that is news.
func (f *fault) set(err error) bool {
	switch {
	case err == nil && f.Why == "", err != nil && f.Why == err.Error():
		return false
	case err == nil:
		*f = fault{}
	case f.Why == "":
		*f = fault{Why: err.Error(), Since: time.Now()}
	default:
		f.Why = err.Error()
	}
	return true
}

// trouble is told what keeps the store from working, and nil when it works.
func (w *witness) trouble(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := w.store.Since
	if !w.store.set(err) {
		return
	}
	if err == nil {
		klog.Infof("store: works again after %s", time.Since(since).Round(time.Millisecond))
		if l, _, ok := w.lease(); ok {
			notify("STATUS=" + l.String())
		}
		return
	}
	klog.Warningf("store: %v", err)
	notify("STATUS=waiting for the store: " + err.Error())
}

// remembered is told that the saved network is used, until there is a claim.
func (w *witness) remembered(n subnet.Snapshot, own subnet.Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.claim == nil {
		w.last, w.former, w.ends = n, own, w.options.knownEnd(own)
	}
}

// knownEnd is until when the lease is this host's, if the daemon before has written it in this boot: a restart does not make
// it last longer.
func (o *options) knownEnd(own subnet.Lease) time.Duration {
	text, err := os.ReadFile(filepath.Join(o.runDir, nodeFileName))
	if err != nil {
		return 0
	}
	f, err := subnet.ParseNodeFile(text)
	if err != nil || f.Boot != bootID() || !slices.Equal(f.Subnets, own.Subnets()) {
		return 0
	}
	return time.Duration(f.Deadline)
}

// lease returns what this host holds, and until when; 0 when that is not known. false before there is anything.
func (w *witness) lease() (l subnet.Lease, deadline time.Duration, ok bool) {
	if w.claim != nil {
		return w.claim.Lease(), w.claim.Deadline(), true
	}
	return w.former, w.ends, w.former.Node != ""
}

// agrees says whether this host can follow a configuration: one that was changed may take away what the host needs. Then
// the network stays as it was. The host is looked at anew: what it was connected to a moment ago is not enough.
func (w *witness) agrees(c subnet.Config) bool {
	w.mu.Lock()
	former, host := w.last.Config, w.host
	w.mu.Unlock()
	var err error
	if c != former && len(former.Pools()) > 0 { // the first one was looked at before
		if now, failed := look(w.options.kernel(former.Backend.VNI)); failed == nil {
			host = now
		}
		err = w.options.apart(c, host)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.apart.set(err) && err != nil {
		klog.Errorf("configuration: %v: nothing is changed", err)
	}
	return err == nil
}

func (w *witness) heard(s subnet.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]bool{}
	for _, k := range w.last.Skipped {
		known[k.Key+string(k.Reason)] = true
	}
	news := slices.DeleteFunc(slices.Clone(s.Skipped), func(k subnet.Skipped) bool { return known[k.Key+string(k.Reason)] })
	for i, k := range news {
		if i == most { // a stranger's keys may be many
			klog.Warningf("skipped ... and %d more (overlayd leases --json lists all)", len(news)-most)
			break
		}
		klog.Warningf("skipped %s: %s: %s", k.Key, k.Reason, k.Detail)
	}
	w.last = s
	select {
	case w.unsaved <- struct{}{}:
	default: // it will be saved
	}
}

// listed is told of every snapshot of the store's own whether our lease is in it.
func (w *witness) listed(n subnet.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	if _, ok := n.Lease(w.options.node); !ok {
		err = errors.New("etcd does not show our lease as one that can be used: hosts that look now do not reach this one")
		for _, k := range n.Skipped {
			if w.claim != nil && slices.Equal(k.Subnets, w.claim.Lease().Subnets()) {
				err = fmt.Errorf("%w (%s)", err, k.Detail)
			}
		}
	}
	if w.unlisted.set(err) && err != nil {
		klog.Warning(err)
	}
}

// renewed is told that the lease lasts longer now.
func (w *witness) renewed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeFiles()
}

// passed is told what a pass of the loop did.
func (w *witness) passed(p backend.Pass) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell(p)
	w.loop = p.Status
	if p.Status.Error == "" {
		tellObstacles(w.host, p.Status.Host, w.last.Config.Backend.Port)
		w.host = p.Status.Host
		if public := w.options.public(w.host); w.claim != nil && w.claim.Readdress(public) {
			klog.Infof("this host has another address: %s", public)
		}
		w.writeFiles()
	}
	if p.Status.Synced && !w.ready {
		w.ready = true
		close(w.served)
		klog.Infof("ready: %d rows for %d peers", p.Status.Rows, p.Status.Peers)
		l, _, _ := w.lease()
		notify(sd.SdNotifyReady + "\nSTATUS=" + l.String())
	}
	notify(sd.SdNotifyWatchdog)
}

// near says whether a route leads to a part of our links: a peer there is a neighbour no more, or is one again. So does one
// to the address by which the admin has the uplink chosen, and one inside the network, which may have the place of ours or
// no longer have it.
func (w *witness) near(p netip.Prefix) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	inside := func(l netip.Prefix) bool { return p.Bits() >= l.Bits() && l.Contains(p.Addr()) }
	pool := func(c subnet.Pool) bool { return inside(c.Network) }
	return slices.ContainsFunc(w.host.Uplink.OnLink, inside) || p.Contains(w.options.choice.CanReach) || slices.ContainsFunc(w.last.Config.Pools(), pool)
}

// isVTEP says whether the address is that of a peer's VXLAN device.
func (w *witness) isVTEP(a netip.Addr) bool {
	if !a.IsValid() { // as is the one that a lease of the other family has
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.last.Leases, func(l subnet.Lease) bool { return l.Subnet.Addr() == a || l.Subnet6.Addr() == a })
}

// most is how many changes of one pass the log shows in full.
const most = 20

// tell logs a pass that changed something, and faults when they come and go.
func (w *witness) tell(p backend.Pass) {
	for _, c := range p.Mended {
		w.repairs[backend.Kind(c.Row())]++
	}
	for i, c := range p.Made {
		if i == most {
			klog.Infof("... and %d more (overlayd plan shows all rows)", len(p.Made)-most)
			break
		}
		verb := ""
		if slices.Contains(p.Mended, c) {
			verb = "mended: "
		}
		klog.Infof("%s%s", verb, c)
	}
	klog.V(2).Infof("pass: %d rows, %d changes, %s", p.Status.Rows, len(p.Made), p.Status.Took)
	now := map[string]bool{}
	if p.Status.Error != "" {
		now[p.Status.Error] = true
	}
	for _, f := range p.Status.Faults {
		now[f.Change+": "+f.Why] = true
	}
	for text := range now {
		if !w.faults[text] {
			klog.Errorf("cannot mend: %s", text)
		}
	}
	if len(w.faults) > 0 && len(now) == 0 {
		klog.Info("all mended")
	}
	w.faults = now
}

// writeFiles brings the node file and subnet.env up to date. Each is replaced at once: a reader sees the old or the new.
func (w *witness) writeFiles() {
	lease, deadline, ok := w.lease()
	if !ok {
		return
	}
	config := w.last.Config
	if len(config.Pools()) == 0 && w.claim != nil { // nothing was heard yet
		config = w.claim.Config()
	}
	switch {
	case w.fenced.Why != "":
		deadline = subnet.DeadlineLost // no pod gets an address that is somebody else's
	case !slices.Equal(lease.Subnets(), w.loop.Subnets):
		return // the kernel is not ready for it yet
	}
	f := subnet.NewNodeFile(config, lease)
	f.Boot, f.Deadline = bootID(), int64(deadline)
	f.VXLAN, f.Bridge, f.MTU = w.host.VXLAN, w.options.bridge, backend.PodMTU(w.host, config.Backend)
	text := f.Text()
	if bytes.Equal(text, w.nodeFile) {
		return
	}
	err := renameio.WriteFile(filepath.Join(w.options.runDir, nodeFileName), text, 0o644)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(w.options.runDir, subnetEnvName), f.SubnetEnv(), 0o644)
	}
	news := w.files.set(err)
	if err != nil {
		if news {
			klog.Warningf("node file: %v", err)
		}
		return
	}
	if news {
		klog.Info("node file: written again")
	}
	w.nodeFile = text
}

// The network is saved at most ten times a second, and at most 100 kB of it: with thousands of hosts it is a megabyte.
const (
	saveEvery   = 100 * time.Millisecond
	savePerByte = 10 * time.Microsecond
)

// save keeps the network as the store last told it, for a start without the store.
func (w *witness) save(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.unsaved:
		}
		w.mu.Lock()
		text := w.last.Save(w.options.store.Prefix)
		w.mu.Unlock()
		if err := renameio.WriteFile(filepath.Join(w.options.stateDir, networkName), text, 0o600); err != nil {
			klog.Warningf("save the network: %v", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(saveEvery, time.Duration(len(text))*savePerByte)):
		}
	}
}
