package etcd_test

import (
	"context"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/overlayd/overlayd/subnet/etcd"
	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// authority issues certificates for one test.
type authority struct {
	*etcdtest.Authority
	dir  string
	file string // the certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.file = filepath.Join(a.dir, "ca.pem")
	var err error
	a.Authority, err = etcdtest.NewAuthority(a.file)
	must(t, err)
	return a
}

// issue writes a certificate for 127.0.0.1 and its key, fit for both ends. It lasts for an hour.
func (a *authority) issue(t *testing.T, certFile, keyFile string) {
	t.Helper()
	a.issueUntil(t, certFile, keyFile, time.Now().Add(time.Hour))
}

func (a *authority) issueUntil(t *testing.T, certFile, keyFile string, end time.Time) {
	t.Helper()
	must(t, a.Issue(etcdtest.Certificate{Name: "host1", Addrs: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: end, Cert: certFile, Key: keyFile}))
}

// serveTLS starts a server that wants a client certificate of the authority, and returns its URL.
func serveTLS(t *testing.T, a *authority) string {
	t.Helper()
	dir := t.TempDir() // not the authority's: it may have several servers
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	a.issue(t, cert, key)
	return launch(t, "https", func(c *embed.Config) {
		c.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: a.file, ClientCertAuth: true}
	})
}

// launch starts a server with settings that etcdtest does not have, and returns its URL.
func launch(t *testing.T, scheme string, set func(*embed.Config)) string {
	t.Helper()
	at := url.URL{Scheme: scheme, Host: freeAddr(t)}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c := embed.NewConfig()
	c.Dir, c.Name, c.LogLevel, c.LogOutputs = t.TempDir(), "lab", "error", []string{"/dev/null"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.UnsafeNoFsync, c.EnableGRPCGateway = true, false
	c.TickMs, c.ElectionMs = 20, 200
	set(c)
	server, err := embed.StartEtcd(c)
	must(t, err)
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(patience):
		t.Fatal("the server does not become ready")
	}
	return at.String()
}

func TestTLSWithAClientCertificateWorks(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	url := serveTLS(t, a)
	cert, key := filepath.Join(a.dir, "client.pem"), filepath.Join(a.dir, "client.key")
	a.issue(t, cert, key)
	s, err := etcd.Open(etcd.Options{Endpoints: []string{url}, Prefix: prefix, CAFile: a.file, CertFile: cert, KeyFile: key})
	must(t, err)
	defer s.Close()
	must(t, s.Configure(t.Context(), wide))
	text, err := s.Config(t.Context())
	must(t, err)
	same(t, text, wide)
}

func TestTLSRefusesTheUntrusted(t *testing.T) {
	t.Parallel()
	a, stranger := newAuthority(t), newAuthority(t)
	url := serveTLS(t, a)
	cert, key := filepath.Join(a.dir, "client.pem"), filepath.Join(a.dir, "client.key")
	a.issue(t, cert, key)
	for _, c := range []struct {
		name string
		o    etcd.Options
	}{
		{"a client without a certificate", etcd.Options{CAFile: a.file}},
		{"a server of another authority", etcd.Options{CAFile: stranger.file, CertFile: cert, KeyFile: key}},
		{"a server of no authority of the system's", etcd.Options{CertFile: cert, KeyFile: key}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.o.Endpoints, c.o.Prefix = []string{url}, prefix
			s, err := etcd.Open(c.o)
			must(t, err)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if text, err := s.Config(ctx); err == nil || text != "" {
				t.Errorf("read %q, %v", text, err)
			}
		})
	}
}

// TestAClientCertificateIsReadAgain: one that the server does not trust is replaced on disk, and nobody restarts anything.
func TestAClientCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	a, stranger := newAuthority(t), newAuthority(t)
	url := serveTLS(t, a)
	cert, key := filepath.Join(a.dir, "client.pem"), filepath.Join(a.dir, "client.key")
	stranger.issue(t, cert, key)
	s, err := etcd.Open(etcd.Options{Endpoints: []string{url}, Prefix: prefix, CAFile: a.file, CertFile: cert, KeyFile: key})
	must(t, err)
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Configure(ctx, wide); err == nil {
		t.Fatal("the server takes a stranger's certificate")
	}
	a.issue(t, cert, key)
	until(t, func() bool { return s.Configure(t.Context(), wide) == nil }, func() string { return "still refused" })
}
