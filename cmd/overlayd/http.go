package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

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
	Degraded []string         `json:"degraded,omitempty"` // what does not work and does not keep pods from talking
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
	Skipped  []subnet.Skipped `json:"skipped,omitempty"`
	Kernel   backend.Status   `json:"kernel"`
}

// report says how things stand now.
func (w *witness) report() report {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := report{
		Release: release, Node: w.options.node, PID: os.Getpid(), Started: w.started,
		Uplink: w.host.Uplink.Name, Local: w.host.Uplink.Addr, VXLAN: w.host.VXLAN, Bridge: w.options.bridge,
		Pods: len(w.host.Pods), Skipped: w.last.Skipped, Kernel: w.loop,
	}
	notReady := func(format string, args ...any) { r.NotReady = append(r.NotReady, fmt.Sprintf(format, args...)) }
	if lease, deadline, ok := w.lease(); !ok {
		notReady("no lease yet")
	} else {
		r.Subnets, r.PublicIP, r.Peers = lease.Subnets(), lease.PublicIP, w.loop.Peers
		r.MTU = backend.PodMTU(w.host, w.last.Config.Backend)
		if deadline == 0 {
			r.Degraded = append(r.Degraded, fmt.Sprintf("the store has not answered since the start: this is the network as it was saved at revision %d", w.last.Revision))
		} else if r.LeaseEnd = (deadline - bootTime()).Seconds(); r.LeaseEnd < 0 {
			notReady("the lease ended %s ago", time.Duration(-r.LeaseEnd*float64(time.Second)).Round(time.Second))
		}
		if !w.loop.Synced && w.loop.Error == "" {
			notReady("the kernel differs from what is wanted")
		}
	}
	if w.loop.Error != "" {
		notReady("%s", w.loop.Error)
	}
	if w.host.Uplink.Down {
		notReady("uplink %s is down", w.host.Uplink.Name)
	}
	if w.fenced.Why != "" {
		notReady("since %s: %s", w.fenced.Since.Format(time.TimeOnly), w.fenced.Why)
	}
	degraded := func(name string, f fault) {
		if f.Why != "" {
			r.Degraded = append(r.Degraded, fmt.Sprintf("%s, since %s: %s", name, f.Since.Format(time.TimeOnly), f.Why))
		}
	}
	if n := len(w.last.Missing); n > 0 {
		r.Degraded = append(r.Degraded, fmt.Sprintf("%d leases vanished from the store at once: their rows stay until %s if they do not come back",
			n, w.last.Missing[0].Since.Add(w.options.massGrace).Format(time.TimeOnly)))
	}
	degraded("lease", w.unlisted)
	degraded("store", w.store)
	degraded("node file", w.files)
	r.Ready = len(r.NotReady) == 0
	return r
}

// plan is what the kernel should hold now.
func (w *witness) plan() backend.State {
	w.mu.Lock()
	host, network := w.host, w.last
	w.mu.Unlock()
	return backend.Plan(host, network)
}

// serve answers on the socket in the run directory until the context ends.
func serve(ctx context.Context, dir string, w *witness) error {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed daemon's; we hold the lock
		return fmt.Errorf("status socket: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return errors.Join(err, listener.Close())
	}
	const patience = 5 * time.Second
	server := &http.Server{Handler: routes(w), ReadHeaderTimeout: patience}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status socket: %w", err)
	}
	return ctx.Err()
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
