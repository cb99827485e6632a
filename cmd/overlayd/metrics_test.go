package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// scraped reads what Prometheus would.
func scraped(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(text))
	must(t, err)
	return all
}

// value is the one with the label's value, "" for a metric without labels.
func value(t *testing.T, all map[string]*dto.MetricFamily, name, label string) float64 {
	t.Helper()
	family, ok := all["overlayd_"+name]
	if !ok || family.GetHelp() == "" {
		t.Fatalf("there is no overlayd_%s with a help text", name)
	}
	for _, m := range family.GetMetric() {
		if len(m.GetLabel()) == 0 && label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("overlayd_%s has no value for %q", name, label)
	return 0
}

// troubled is a witness of a host with something of everything.
func troubled(t *testing.T) *witness {
	w := holding(t)
	w.passed(pass(w, 1500))
	prefix := netip.MustParsePrefix("10.5.9.0/24")
	w.heard(subnet.Snapshot{
		Revision: 7, Config: w.claim.Config(), Leases: []subnet.Lease{w.claim.Lease()},
		Skipped: []subnet.Skipped{{Key: "a", Reason: subnet.ReasonKey}, {Key: "b", Reason: subnet.ReasonKey}, {Key: "c", Reason: subnet.ReasonMAC}},
		Missing: []subnet.Missing{{Lease: subnet.Lease{Node: "gone", Subnet: prefix}, Since: time.Now()}},
	})
	again := pass(w, 1500)
	again.Status.Made, again.Status.Took, again.Status.Revision = 11, 1500*time.Microsecond, 7
	again.Status.Host.Pods = []backend.Pod{{}, {}}
	again.Status.Host.Obstacles = []backend.Obstacle{{Chain: backend.Chain{Family: "inet", Table: "mine", Name: "fw"}, Hook: backend.HookInput}}
	w.passed(again)
	w.trouble(errors.New("connection refused"))
	return w
}

func TestPrometheusReadsEverythingFromTheSocket(t *testing.T) {
	w := troubled(t)
	dir := w.options.runDir
	serving(t, dir, w)
	code, text := get(t, dir, http.MethodGet, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	all := scraped(t, text)
	for _, want := range []struct {
		name, label string
		value       float64
	}{
		{"ready", "", 1}, {"degraded", "", 3}, {"obstacles", "", 1}, {"info", release, 1}, {"peers", "", 2}, {"pods", "", 2}, {"leases_missing", "", 1}, {"store_up", "", 0},
		{"leases_skipped", "key", 2}, {"leases_skipped", "mac", 1}, {"leases_skipped", "overlap", 0}, {"leases_skipped", "config", 0},
		{"tls_reload_errors_total", "", 0}, {"passes_total", "", 1}, {"pass_duration_seconds", "", 0.0015}, {"changes_total", "", 11},
		{"repairs_total", "route", 0}, {"repairs_total", "vxlan", 0}, {"faults", "", 0}, {"rows", "", 3},
	} {
		if got := value(t, all, want.name, want.label); got != want.value {
			t.Errorf("overlayd_%s{%s} is %v, want %v", want.name, want.label, got, want.value)
		}
	}
	if left := value(t, all, "lease_remaining_seconds", ""); left < 30 || left > 60 {
		t.Errorf("the lease lasts %v s, want a little less than a minute", left)
	}
	for name := range newMetrics(w).desc {
		_, there := all["overlayd_"+name]
		if certificate := name == "tls_expiry_timestamp_seconds"; there == certificate { // there is no certificate
			t.Errorf("overlayd_%s: it is %t that it is there", name, there)
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if _, ok := all[name]; !ok {
			t.Errorf("there is no %s", name)
		}
	}
	for name, family := range all {
		if strings.HasSuffix(name, "_total") != (family.GetType() == dto.MetricType_COUNTER) {
			t.Errorf("%s is a %s", name, family.GetType())
		}
	}
}

// TestListenTellsTheSameOverTCP: a scraper elsewhere has no socket.
func TestListenTellsTheSameOverTCP(t *testing.T) {
	lab.Need(t)
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, probe.Close())
	at := probe.Addr().String()
	o := &options{node: "h1", runDir: t.TempDir(), listen: at}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, o, newWitness(o, backend.Host{})) }()
	var text []byte
	must(t, lab.Eventually(at+" answers", func() error {
		answer, err := http.Get("http://" + at + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err = io.ReadAll(answer.Body)
		return err
	}))
	all := scraped(t, string(text))
	if got := value(t, all, "ready", ""); got != 0 {
		t.Errorf("overlayd_ready is %v before there is a lease", got)
	}
	if _, ok := all["overlayd_lease_remaining_seconds"]; ok {
		t.Error("without a lease there is a time for which it lasts")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// TestEveryKindAndReasonHasItsMetricFromTheStart: an alert can be written before the first one is.
func TestEveryKindAndReasonHasItsMetricFromTheStart(t *testing.T) {
	dir := t.TempDir()
	serving(t, dir, newWitness(&options{node: "h1"}, backend.Host{}))
	_, text := get(t, dir, http.MethodGet, "/metrics")
	all := scraped(t, text)
	for _, kind := range backend.Kinds() {
		if got := value(t, all, "repairs_total", kind); got != 0 {
			t.Errorf("%v repairs of a %s", got, kind)
		}
	}
	for _, reason := range reasons() {
		if got := value(t, all, "leases_skipped", string(reason)); got != 0 {
			t.Errorf("%v skipped for %s", got, reason)
		}
	}
}

// TestAReasonWithoutAMetricIsNotForgotten: reasons are the ones that subnet has.
func TestAReasonWithoutAMetricIsNotForgotten(t *testing.T) {
	known := fmt.Sprint(reasons())
	for _, r := range []subnet.Reason{
		subnet.ReasonKey, subnet.ReasonValue, subnet.ReasonOutside, subnet.ReasonOverlap, subnet.ReasonMAC, subnet.ReasonPublicIP, subnet.ReasonNode, subnet.ReasonConfig,
	} {
		if !strings.Contains(known, string(r)) {
			t.Errorf("%s is counted nowhere", r)
		}
	}
}
