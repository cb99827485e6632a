package etcd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet/etcd"
)

// papers are the files of one host, and of the server that it speaks to.
type papers struct {
	ca, cert, key               string
	serverCA, server, serverKey string
}

// paper writes all files as one authority signs them.
func paper(t *testing.T, a *authority) papers {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	p := papers{ca: in("ca.pem"), cert: in("client.pem"), key: in("client.key"), server: in("server.pem"), serverKey: in("server.key"), serverCA: in("clients.pem")}
	p.trust(t, a)
	a.issue(t, p.server, p.serverKey)
	a.issue(t, p.cert, p.key)
	return p
}

// trust makes both ends trust authorities.
func (p papers) trust(t *testing.T, all ...*authority) {
	t.Helper()
	var text []byte
	for _, a := range all {
		one, err := os.ReadFile(a.file)
		must(t, err)
		text = append(text, one...)
	}
	must(t, os.WriteFile(p.ca, text, 0o600))
	must(t, os.WriteFile(p.serverCA, text, 0o600))
}

func (p papers) flags() []string {
	return []string{"--cert-file", p.server, "--key-file", p.serverKey, "--trusted-ca-file", p.serverCA, "--client-cert-auth"}
}

func (p papers) options(urls ...string) etcd.Options {
	return etcd.Options{Endpoints: urls, Prefix: prefix, CAFile: p.ca, CertFile: p.cert, KeyFile: p.key}
}

// TestCertificatesAreRotatedWithoutALostLease: first both authorities are trusted, then all certificates are of the new one
// and the old one is not trusted any more. Only the server is restarted, as it must be to read its authorities.
func TestCertificatesAreRotatedWithoutALostLease(t *testing.T) {
	t.Parallel()
	old, next := newAuthority(t), newAuthority(t)
	p := paper(t, old)
	d := serveDebian(t, "https", p.flags()...)
	h := hostWith(t, "host1", "192.0.2.7", p.options(d.url))
	h.terms.TTL = 10 * time.Second
	h.configure(t)
	c := h.claim(t)
	w := h.watch(t)
	k := keep(t, c)
	lease := fmt.Sprint(d.admin(t, p).leaseOf(t, "/overlayd/nodes/host1"))
	for _, step := range []func(){
		func() { p.trust(t, old, next) },
		func() { next.issue(t, p.server, p.serverKey); next.issue(t, p.cert, p.key); p.trust(t, next) },
	} {
		step()
		d.stop()
		d.start(t)
		n := len(k.renewals())
		until(t, func() bool { return len(k.renewals()) > n }, func() string { return fmt.Sprint(h.told.all()) })
	}
	same(t, fmt.Sprint(d.admin(t, p).leaseOf(t, "/overlayd/nodes/host1")), lease)
	if k.ended() {
		t.Errorf("Keep ended with %v", k.err)
	}
	d.admin(t, p).put(t, "/subnets/10.5.9.0-24", `{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"}}`)
	until(t, func() bool { return strings.Contains(w.last(), "192.0.2.9") }, w.last)
	if s := h.store.Security(); s.Trouble != nil {
		t.Errorf("the files are said to be of no use: %v", s.Trouble)
	}
}

// configure sets the network's configuration as soon as there is a server.
func (h *host) configure(t *testing.T) {
	t.Helper()
	var err error
	until(t, func() bool { err = h.store.Configure(t.Context(), wide); return err == nil }, func() string { return fmt.Sprint(err) })
}

// admin is the same server for whoever has the papers, as they are now.
func (d *debian) admin(t *testing.T, p papers) *network {
	t.Helper()
	info := transport.TLSInfo{CertFile: p.cert, KeyFile: p.key, TrustedCAFile: p.ca}
	config, err := info.ClientConfig()
	must(t, err)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{d.url}, TLS: config})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return &network{url: d.url, plain: c}
}

// TestABadNewCertificateLeavesTheOldInUse and is counted, once.
func TestABadNewCertificateLeavesTheOldInUse(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, p papers) string // and return the file that is to be named
	}{
		{"junk for a certificate", func(t *testing.T, p papers) string {
			must(t, os.WriteFile(p.cert, []byte("junk"), 0o600))
			return p.cert
		}},
		{"half of a key", func(t *testing.T, p papers) string {
			text, err := os.ReadFile(p.key)
			must(t, err)
			must(t, os.WriteFile(p.key, text[:len(text)/2], 0o600))
			return p.key
		}},
		{"a certificate of another key", func(t *testing.T, p papers) string {
			newAuthority(t).issue(t, p.cert, filepath.Join(t.TempDir(), "key"))
			return p.cert
		}},
		{"an authority that is gone", func(t *testing.T, p papers) string { must(t, os.Remove(p.ca)); return p.ca }},
		{"an empty authority", func(t *testing.T, p papers) string { must(t, os.WriteFile(p.ca, nil, 0o600)); return p.ca }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := paper(t, a)
			line := lay(t, serveTLS(t, a))
			h := hostWith(t, "host1", "192.0.2.7", p.options("https://"+line.from))
			h.configure(t)
			if s := h.store.Security(); s.ReloadErrors != 0 || s.Trouble != nil || time.Until(s.Expires) > time.Hour || time.Until(s.Expires) < 50*time.Minute {
				t.Errorf("at first %+v", s)
			}
			named := c.spoil(t, p)
			line.cut()
			line.mend(t)
			until(t, func() bool { _, err := h.store.Config(t.Context()); return err == nil }, func() string { return "the old ones are not in use" })
			for range 3 {
				s := h.store.Security()
				if s.ReloadErrors != 1 || s.Trouble == nil || !strings.Contains(s.Trouble.Error(), named) {
					t.Errorf("after a bad file: %+v, want it counted once, and %s named", s, named)
				}
			}
			p.trust(t, a)
			a.issue(t, p.cert, p.key)
			if s := h.store.Security(); s.ReloadErrors != 1 || s.Trouble != nil {
				t.Errorf("after good files: %+v", s)
			}
		})
	}
}

// TestAKeyThatMayNotBeReadIsReadWhenItMay: giving the right to read a file changes neither its time nor its size.
func TestAKeyThatMayNotBeReadIsReadWhenItMay(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread() // never unlocked: without root's right to read everything it is of no use to others
	must(t, unix.Setfsuid(65534))
	a := newAuthority(t)
	p := paper(t, a)
	s, err := etcd.Open(p.options("https://127.0.0.1:2379"))
	must(t, err)
	defer s.Close()
	a.issue(t, p.cert, p.key)
	must(t, os.Chmod(p.key, 0))
	if got := s.Security(); got.Trouble == nil || !strings.Contains(got.Trouble.Error(), "permission denied") {
		t.Errorf("with a key that may not be read: %+v", got)
	}
	must(t, os.Chmod(p.key, 0o600))
	if got := s.Security(); got.Trouble != nil || got.ReloadErrors != 1 {
		t.Errorf("with a key that may be read again: %+v", got)
	}
}

// TestATLSErrorIsToldAsOne with the endpoint, and not as a server that does not answer.
func TestATLSErrorIsToldAsOne(t *testing.T) {
	t.Parallel()
	a, stranger := newAuthority(t), newAuthority(t)
	for name, url := range map[string]string{"Debian's etcd": serveDebian(t, "https", paper(t, a).flags()...).url, "the newest etcd": serveTLS(t, a)} {
		for _, c := range []struct {
			name  string
			spoil func(t *testing.T, p *papers)
			words []string
		}{
			{"an expired certificate", func(t *testing.T, p *papers) { a.issueUntil(t, p.cert, p.key, time.Now().Add(-time.Minute)) }, []string{"expired certificate"}},
			{"a certificate of a stranger", func(t *testing.T, p *papers) { stranger.issue(t, p.cert, p.key) }, []string{"TLS", "certificate"}},
			{"no certificate", func(_ *testing.T, p *papers) { p.cert, p.key = "", "" }, []string{"TLS", "certificate"}},
			{"a server of a stranger", func(t *testing.T, p *papers) { p.trust(t, stranger) }, []string{"certificate signed by unknown authority"}},
		} {
			t.Run(name+", "+c.name, func(t *testing.T) {
				t.Parallel()
				p := paper(t, a)
				c.spoil(t, &p)
				h := hostWith(t, "host1", "192.0.2.7", p.options(url))
				until(t, func() bool { return h.store.Reach(t.Context()) == nil }, func() string { return "the server is not there" })
				_, err := h.store.Config(t.Context())
				if err == nil || !containsAll(err.Error(), append(c.words, "TLS", url)) || strings.Contains(err.Error(), "does not answer") {
					t.Errorf("told %v, want %s, TLS and %q", err, url, c.words)
				}
			})
		}
	}
}
