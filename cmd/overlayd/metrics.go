package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// reasons are those for which a lease can be skipped: each has its metric from the start, so that an alert can be written
// before the first one is.
func reasons() []subnet.Reason {
	return []subnet.Reason{
		subnet.ReasonKey, subnet.ReasonValue, subnet.ReasonOutside, subnet.ReasonOverlap, subnet.ReasonMAC, subnet.ReasonPublicIP,
		subnet.ReasonNode, subnet.ReasonConfig,
	}
}

// metrics shows a witness's report to Prometheus. Everything is computed when it is asked for: there is no second truth.
type metrics struct {
	witness *witness
	desc    map[string]*prometheus.Desc
}

func newMetrics(w *witness) *metrics {
	m := &metrics{witness: w, desc: map[string]*prometheus.Desc{}}
	for _, d := range []struct{ name, help, label string }{
		{"ready", "1 while this host can be relied on (as /readyz)", ""},
		{"degraded", "how many things do not work and are not overlayd's to mend, or can wait: overlayd status names them", ""},
		{"obstacles", "of those, chains of others that drop what pods of two hosts say, or VXLAN", ""},
		{"info", "1, with the version", "version"},
		{"peers", "hosts whose rows are in the kernel", ""},
		{"pods", "pods attached to this host", ""},
		{"addresses_capacity", "pods that this host has addresses for", ""},
		{"addresses_free", "of those, how many could be attached", ""},
		{"leases_skipped", "records of the store that cannot be used", "reason"},
		{"leases_missing", "leases that vanished from the store in a mass and are still believed", ""},
		{"lease_remaining_seconds", "until somebody else could get this host's lease; negative: since", ""},
		{"store_up", "1 while the store answers", ""},
		{"tls_reload_errors_total", "changed certificate files that could not be used", ""},
		{"tls_expiry_timestamp_seconds", "when this host's certificate for etcd ends", ""},
		{"passes_total", "times the kernel was compared with what is wanted", ""},
		{"pass_duration_seconds", "duration of the last pass", ""},
		{"changes_total", "rows made, altered or removed", ""},
		{"repairs_total", "rows that somebody else had changed and that were put right", "kind"},
		{"dropped_packets_total", "packets that overlayd's rules dropped", "reason"},
		{"faults", "rows that differ from what is wanted and could not be put right", ""},
		{"rows", "rows that the kernel should hold", ""},
	} {
		var labels []string
		if d.label != "" {
			labels = []string{d.label}
		}
		m.desc[d.name] = prometheus.NewDesc("overlayd_"+d.name, d.help, labels, nil)
	}
	return m
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range m.desc {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	r := m.witness.report()
	tell := func(kind prometheus.ValueType, name string, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.desc[name], kind, value, labels...)
	}
	gauge := func(name string, value float64, labels ...string) {
		tell(prometheus.GaugeValue, name, value, labels...)
	}
	count := func(name string, value int, labels ...string) {
		tell(prometheus.CounterValue, name, float64(value), labels...)
	}
	gauge("ready", one(r.Ready))
	gauge("degraded", float64(len(r.Degraded)))
	gauge("obstacles", float64(r.Obstacles))
	gauge("info", 1, r.Release)
	gauge("peers", float64(r.Peers))
	gauge("pods", float64(r.Pods))
	gauge("addresses_capacity", float64(r.Room))
	gauge("addresses_free", float64(r.Room)-float64(r.Pods))
	for _, reason := range reasons() {
		gauge("leases_skipped", float64(r.SkippedBy[reason]), string(reason))
	}
	gauge("leases_missing", float64(r.Missing))
	if r.LeaseEnd != 0 {
		gauge("lease_remaining_seconds", r.LeaseEnd)
	}
	gauge("store_up", one(r.StoreUp))
	count("tls_reload_errors_total", r.TLSReloadErrors)
	if !r.TLSExpires.IsZero() {
		gauge("tls_expiry_timestamp_seconds", float64(r.TLSExpires.Unix()))
	}
	count("passes_total", r.Kernel.Passes)
	gauge("pass_duration_seconds", r.Kernel.Took.Seconds())
	count("changes_total", r.Kernel.Made)
	for _, kind := range backend.Kinds() {
		count("repairs_total", r.Repairs[kind], kind)
	}
	for _, reason := range backend.DropReasons() {
		tell(prometheus.CounterValue, "dropped_packets_total", float64(r.Dropped[reason]), reason)
	}
	gauge("faults", float64(len(r.Kernel.Faults)))
	gauge("rows", float64(r.Kernel.Rows))
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// serveMetrics answers in Prometheus's text format.
func serveMetrics(w *witness) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newMetrics(w), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}
