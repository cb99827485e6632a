package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// errNotReady makes the exit code 1 after the report has said why.
var errNotReady = errors.New("not ready")

// runStatus asks the daemon over its socket.
func runStatus(ctx context.Context, o *options, _ []string, out io.Writer) error {
	path := filepath.Join(o.runDir, socketName)
	text, err := ask(ctx, path, "/status")
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no overlayd answers at %s: start it (systemctl start overlayd), or give the --run-dir it runs with", path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: permission denied: ask as root", path)
	case err != nil:
		return fmt.Errorf("ask overlayd: %w", err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("overlayd's answer: %w", err)
	}
	if o.json {
		_, err = out.Write(text)
	} else {
		err = r.print(out)
	}
	if err == nil && !r.Ready {
		err = errNotReady
	}
	return err
}

func ask(ctx context.Context, socket, what string) ([]byte, error) {
	const patience = 5 * time.Second
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://overlayd"+what, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close() //nolint:errcheck // read to its end
	return io.ReadAll(answer.Body)
}

// print writes the report for people: the verdict first.
func (r report) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	verdict := "ready"
	if !r.Ready {
		verdict = "NOT READY"
	}
	row("overlayd", "%s, %s (process %d, up %s)", r.Release, verdict, r.PID, time.Since(r.Started).Round(time.Second))
	for _, why := range r.NotReady {
		row("  because", "%s", why)
	}
	for _, what := range r.Degraded {
		row("degraded", "%s", what)
	}
	for _, chain := range r.Opened {
		row("opened", "nft chain %s, which drops what it forwards: two rules in it, with the comment overlayd, accept all from and to %s", chain, r.Bridge)
	}
	if r.PublicIP.IsValid() {
		row("node", "%s at %s", r.Node, r.PublicIP)
	} else {
		row("node", "%s", r.Node)
	}
	if len(r.Subnets) > 0 {
		row("subnet", "%s, %s", words(r.Subnets), leaseEnd(r.LeaseEnd))
	}
	row("uplink", "%s %s", r.Uplink, r.Local)
	if r.VXLAN != "" {
		row("devices", "%s, bridge %s, MTU %d", r.VXLAN, orNone(r.Bridge), r.MTU)
	} else if r.MTU > 0 {
		row("devices", "bridge %s, MTU %d", orNone(r.Bridge), r.MTU)
	}
	row("network", "%d peers, %d pods here of %d", r.Peers, r.Pods, r.Room)
	state := "holds all %d rows"
	if !r.Kernel.Synced {
		state = "should hold %d rows"
	}
	row("kernel", state+" of revision %d (pass %d took %s, %d changes so far)",
		r.Kernel.Rows, r.Kernel.Revision, r.Kernel.Passes, r.Kernel.Took.Round(time.Microsecond), r.Kernel.Made)
	for _, f := range r.Kernel.Faults {
		row("  differs", "%s", f.Change)
		row("", "since %s: %s", f.Since.Format(time.TimeOnly), f.Why)
	}
	total := 0
	for _, n := range r.SkippedBy {
		total += n
	}
	printSkipped(t, r.Skipped, total)
	return t.Flush()
}

// leaseEnd says how many seconds a lease lasts; 0 is not known.
func leaseEnd(seconds float64) string {
	left := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	switch {
	case seconds < 0:
		return fmt.Sprintf("the lease ended %s ago", -left)
	case seconds == 0:
		return "for how long is not known"
	}
	return fmt.Sprintf("ours for another %s", left)
}

const mostSkipped = 20

// printSkipped shows the first of so many.
func printSkipped(out io.Writer, skipped []subnet.Skipped, total int) {
	for i, s := range skipped {
		if i == mostSkipped {
			break
		}
		fmt.Fprintf(out, "skipped\t%s: %s: %s\n", s.Key, s.Reason, s.Detail)
	}
	if total > mostSkipped {
		fmt.Fprintf(out, "skipped\t... and %d more (overlayd leases --json lists all)\n", total-mostSkipped)
	}
}

// words joins values with spaces.
func words[T fmt.Stringer](values []T) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = v.String()
	}
	return strings.Join(all, " ")
}

func orNone(name string) string {
	if name == "" {
		return noBridge
	}
	return name
}
