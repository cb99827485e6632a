package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet/etcd"
)

func TestCertificatesAndServersAreComplainedOfInTime(t *testing.T) {
	w := newWitness(&options{node: "h1"}, backend.Host{})
	check := func(what, degraded string) {
		t.Helper()
		if got := strings.Join(w.report().Degraded, "\n"); !strings.Contains(got, degraded) || (degraded == "") != (got == "") {
			t.Errorf("%s: degraded is %q, want %q", what, got, degraded)
		}
	}
	w.secured(etcd.Security{})
	check("no certificate", "")
	w.secured(etcd.Security{Expires: time.Now().Add(expirySoon + time.Hour)})
	check("a week and an hour", "")
	soon := time.Now().Add(expirySoon - time.Hour)
	w.secured(etcd.Security{Expires: soon})
	check("a week without an hour", "this host's certificate ends at "+soon.Format(time.DateTime))
	w.secured(etcd.Security{Expires: time.Now().Add(-time.Hour)})
	check("ended", "this host's certificate ended at ")
	w.secured(etcd.Security{Expires: time.Now().Add(2 * expirySoon), Trouble: errors.New("host.pem: not PEM"), ReloadErrors: 3})
	check("a bad new file", "certificates, since ")
	if r := w.report(); r.TLSReloadErrors != 3 || r.TLSExpires.IsZero() {
		t.Errorf("%d reload errors, ends at %s: want 3 and a time", r.TLSReloadErrors, r.TLSExpires)
	}
	w.secured(etcd.Security{Expires: time.Now().Add(2 * expirySoon)})
	check("mended", "")
	w.weakened("http://192.0.2.1:2379 runs etcd 3.4.23")
	check("an old server", "runs etcd 3.4.23 (--allow-old-etcd if you know)")
	w.weakened("")
	check("a new one", "")
}
