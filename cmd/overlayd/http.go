package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// report is how things stand, for overlayd status and whoever else asks.
type report struct {
	Release  string           `json:"release"`
	Node     string           `json:"node"`
	PID      int              `json:"pid"`
	Started  time.Time        `json:"started"`
	Ready    bool             `json:"ready"`
	NotReady []string         `json:"notReady,omitempty"` // why
	Degraded []string         `json:"degraded,omitempty"` // what does not work, and is not ours to mend or can wait
	Opened   []string         `json:"opened,omitempty"`   // chains of iptables that would drop what pods say, and have rules of ours
	Subnets  []netip.Prefix   `json:"subnets"`
	PublicIP netip.Addr       `json:"publicIP"`
	LeaseEnd float64          `json:"leaseEndSeconds"` // until somebody else could get the lease; negative: since
	Uplink   string           `json:"uplink"`
	Local    netip.Addr       `json:"local"`
	VXLAN    string           `json:"vxlan"`
	Bridge   string           `json:"bridge"`
	MTU      int              `json:"mtu"`
	Peers    int              `json:"peers"`
	Pods     int              `json:"pods"`
	Room     uint64           `json:"room"`              // pods that this host has addresses for
	Missing  int              `json:"missing"`           // leases that vanished in a mass and are still believed
	Skipped  []subnet.Skipped `json:"skipped,omitempty"` // the first hundred
	Kernel   backend.Status   `json:"kernel"`

	SkippedBy       map[subnet.Reason]int `json:"skippedBy,omitempty"` // all, by reason
	Repairs         map[string]int        `json:"repairs,omitempty"`   // rows that somebody else had changed, by kind
	Dropped         map[string]uint64     `json:"dropped,omitempty"`   // packets that our rules dropped, by reason
	Obstacles       int                   `json:"obstacles"`           // chains of others that drop what is ours
	StoreUp         bool                  `json:"storeUp"`
	TLSReloadErrors int                   `json:"tlsReloadErrors"`
	TLSExpires      time.Time             `json:"tlsExpires,omitzero"`
}

// mostListed bounds what a stranger's keys add to a report.
const mostListed = 100

// report says how things stand now.
func (w *witness) report() report {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := report{
		Release: release, Node: w.options.node, PID: os.Getpid(), Started: w.started,
		Uplink: w.host.Uplink.Name, Local: w.host.Uplink.Addr, VXLAN: w.host.VXLAN, Bridge: w.options.bridge,
		Pods: len(w.host.Pods), Missing: len(w.last.Missing), Kernel: w.loop, SkippedBy: map[subnet.Reason]int{},
		Repairs: maps.Clone(w.repairs), StoreUp: w.store.Why == "", Dropped: w.host.Dropped, TLSReloadErrors: w.security.ReloadErrors, TLSExpires: w.security.Expires,
	}
	r.Skipped = w.last.Skipped[:min(len(w.last.Skipped), mostListed)]
	for _, k := range w.last.Skipped {
		r.SkippedBy[k.Reason]++
	}
	w.reportLease(&r)
	w.reportFaults(&r)
	w.reportDegraded(&r)
	for _, c := range w.host.Drops {
		r.Opened = append(r.Opened, c.String())
	}
	r.Ready = len(r.NotReady) == 0
	return r
}

func (r *report) notReady(format string, args ...any) {
	r.NotReady = append(r.NotReady, fmt.Sprintf(format, args...))
}

func (r *report) degraded(name string, f fault) {
	if f.Why != "" {
		r.Degraded = append(r.Degraded, fmt.Sprintf("%s, since %s: %s", name, f.Since.Format(time.TimeOnly), f.Why))
	}
}

// reportLease says what this host holds.
func (w *witness) reportLease(r *report) {
	lease, deadline, ok := w.lease()
	if !ok {
		r.notReady("no lease yet")
		return
	}
	r.Subnets, r.PublicIP, r.Peers = lease.Subnets(), lease.PublicIP, w.loop.Peers
	r.MTU = backend.PodMTU(w.host, w.last.Config.Backend)
	r.Room = subnet.Room(r.Subnets)
	if w.last.Config.Backend.Type != subnet.BackendVXLAN {
		r.VXLAN = ""
	}
	if w.claim == nil && w.fenced.Why == "" {
		r.Degraded = append(r.Degraded, fmt.Sprintf("the store has not answered since the start: this is the network as it was saved at revision %d", w.last.Revision))
	}
	switch {
	case w.fenced.Why != "":
		r.notReady("since %s: %s", w.fenced.Since.Format(time.TimeOnly), w.fenced.Why)
	case deadline == subnet.DeadlineLost:
		r.notReady("somebody else had the subnet when the store last answered")
	case deadline != 0:
		if r.LeaseEnd = (deadline - bootTime()).Seconds(); r.LeaseEnd < 0 {
			r.notReady("the lease ended %s ago", time.Duration(-r.LeaseEnd*float64(time.Second)).Round(time.Second))
		}
	}
	if !w.loop.Synced && w.loop.Error == "" {
		r.notReady("the kernel differs from what is wanted")
	}
}

// reportFaults says what keeps pods from being served.
func (w *witness) reportFaults(r *report) {
	if w.loop.Error != "" {
		r.notReady("%s", w.loop.Error)
	}
	if w.host.Uplink.Down {
		r.notReady("uplink %s is down", w.host.Uplink.Name)
	}
	if w.apart.Why != "" {
		r.notReady("since %s: %s", w.apart.Since.Format(time.TimeOnly), w.apart.Why)
	}
	for _, k := range w.last.Skipped {
		if k.Reason == subnet.ReasonConfig {
			r.notReady("%s: set the former one again (overlayd config set), or restart overlayd on every host to follow it", k.Detail)
		}
	}
}

// configKey is what the store calls the network's configuration among the records that it skips.
const configKey = "config"

// reportDegraded says what does not work, and is not ours to mend or can wait.
func (w *witness) reportDegraded(r *report) {
	if r.Missing > 0 {
		r.Degraded = append(r.Degraded, fmt.Sprintf("%d leases vanished from the store at once: their rows stay until %s if they do not come back",
			r.Missing, w.last.Missing[0].Since.Add(w.options.massGrace).Format(time.TimeOnly)))
	}
	for _, k := range w.last.Skipped {
		if k.Key == configKey && k.Reason == subnet.ReasonValue {
			r.Degraded = append(r.Degraded, "configuration: "+k.Detail)
		}
	}
	r.degraded("lease", w.unlisted)
	r.degraded("store", w.store)
	r.degraded("certificates", w.tls)
	r.degraded("certificates", w.expiry)
	r.degraded("node file", w.files)
	r.Degraded = append(r.Degraded, backend.Unreached(w.host, w.last)...)
	port := w.last.Config.Backend.Port
	r.Obstacles = len(w.host.Obstacles)
	for _, o := range w.host.Obstacles {
		r.Degraded = append(r.Degraded, standsInTheWay(o, w.host, port))
	}
	if n := w.smallPods(); n != "" {
		r.Degraded = append(r.Degraded, n)
	}
	for _, p := range w.host.PathMTU {
		if p.MTU < cmp.Or(w.last.Config.Backend.MTU, w.host.Uplink.MTU) && w.isPeer(p.To) {
			r.Degraded = append(r.Degraded, narrow(p))
		}
	}
	if w.weak != "" {
		r.Degraded = append(r.Degraded, "store: "+w.weak+" (--allow-old-etcd if you know)")
	}
}

// narrow says what becomes of packets that are too large for the way to a peer. The kernel sends VXLAN over IPv4 so that routers
// may cut it into pieces. Over IPv6 only the sender may, and ip6_fragment leaves packets of tunnels whole.
func narrow(p backend.PathMTU) string {
	fate := "travel in pieces"
	if !p.To.Is4() {
		fate = "are lost"
	}
	return fmt.Sprintf("the way to %s takes only packets of %d bytes, larger ones %s: set Backend.MTU to %d (overlayd config set)", p.To, p.MTU, fate, p.MTU)
}

// smallPods names pods whose MTU is not the network's: they were attached before it changed.
func (w *witness) smallPods() string {
	want := backend.PodMTU(w.host, w.last.Config.Backend)
	var other []string
	for _, p := range w.host.Pods {
		if p.MTU > want && want > 0 {
			other = append(other, p.Link)
		}
	}
	if len(other) == 0 {
		return ""
	}
	return fmt.Sprintf("%d pods were attached with a larger MTU than %d, which is the network's now: %s; start them anew",
		len(other), want, strings.Join(other[:min(len(other), mostSkipped)], " "))
}

func (w *witness) isPeer(a netip.Addr) bool {
	return slices.ContainsFunc(w.last.Leases, func(l subnet.Lease) bool { return l.PublicIP == a })
}

// plan is what the kernel should hold now.
func (w *witness) plan() backend.State {
	w.mu.Lock()
	host, network := w.host, w.last
	w.mu.Unlock()
	return backend.Plan(host, network)
}

// serve answers on the socket in the run directory, and on TCP if it was asked for, until the context ends.
func serve(ctx context.Context, o *options, w *witness) error {
	path := filepath.Join(o.runDir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed daemon's; we hold the lock
		return fmt.Errorf("status socket: %w", err)
	}
	socket, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return errors.Join(err, socket.Close())
	}
	listeners := []net.Listener{socket}
	if o.listen != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
		if err != nil {
			return errors.Join(fmt.Errorf("--listen %s: %w", o.listen, err), socket.Close())
		}
		listeners = append(listeners, l)
	}
	const patience = 5 * time.Second
	server := &http.Server{Handler: routes(w), ReadHeaderTimeout: patience}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	group := errgroup.Group{}
	for _, l := range listeners {
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return errors.Join(fmt.Errorf("status at %s: %w", l.Addr(), err), server.Close())
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

func routes(w *witness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprintln(out, "ok") })
	mux.HandleFunc("GET /readyz", func(out http.ResponseWriter, _ *http.Request) {
		r := w.report()
		if !r.Ready {
			out.WriteHeader(http.StatusServiceUnavailable)
		}
		answer(out, struct {
			Ready    bool     `json:"ready"`
			NotReady []string `json:"notReady,omitempty"`
			Degraded []string `json:"degraded,omitempty"`
		}{r.Ready, r.NotReady, r.Degraded})
	})
	mux.Handle("GET /metrics", serveMetrics(w))
	mux.HandleFunc("GET /plan", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprint(out, w.plan()) })
	mux.HandleFunc("GET /status", func(out http.ResponseWriter, _ *http.Request) { answer(out, w.report()) })
	return mux
}

// answer writes v. A client that went away needs no answer.
func answer(out http.ResponseWriter, v any) {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}
