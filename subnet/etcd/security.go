package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// Security is how the connection's certificates stand.
type Security struct {
	ReloadErrors int       // changed files that could not be used, since the start
	Trouble      error     // why the files on disk are not in use; nil when they are
	Expires      time.Time // when this host's certificate ends; zero without one
}

// security makes TLS connections with the certificates that are on disk at the time, or if those cannot be used, with the
// last ones that could. It implements [credentials.TransportCredentials]; it is safe for concurrent use.
type security struct {
	options Options

	mu      sync.Mutex
	config  *tls.Config // made of the files when they were last good
	seen    [3]stamp    // of the files when they were last read
	status  Security
	refused error // why the last connection came to nothing; nil after one that did not
}

// stamp changes when a file is written or replaced.
type stamp struct {
	modified time.Time
	size     int64
}

// newSecurity returns nil when no endpoint wants TLS.
func newSecurity(o Options) (*security, error) {
	secure := 0
	for _, e := range o.Endpoints {
		if strings.HasPrefix(e, "https:") {
			secure++
		}
	}
	switch {
	case secure == 0 && (o.CertFile != "" || o.CAFile != ""):
		return nil, fmt.Errorf("TLS files are given, but no etcd endpoint of %s begins with https", strings.Join(o.Endpoints, ", "))
	case secure == 0:
		return nil, nil //nolint:nilnil // no TLS is not an error
	case secure < len(o.Endpoints):
		return nil, fmt.Errorf("etcd endpoints %s: want all of them http or all https", strings.Join(o.Endpoints, ", "))
	case (o.CertFile == "") != (o.KeyFile == ""):
		return nil, errors.New("etcd client certificate: give both --etcd-certfile and --etcd-keyfile")
	}
	s := &security{options: o, seen: stamps(o)}
	var err error
	s.config, s.status.Expires, err = loadTLS(o)
	return s, err
}

func stamps(o Options) (all [3]stamp) {
	for i, name := range []string{o.CAFile, o.CertFile, o.KeyFile} {
		if info, err := os.Stat(name); err == nil {
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

// loadTLS reads the files, and says when the client certificate ends.
func loadTLS(o Options) (*tls.Config, time.Time, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("etcd CA (--etcd-cafile): %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, time.Time{}, fmt.Errorf("etcd CA (--etcd-cafile): %s holds no PEM certificate", o.CAFile)
		}
	}
	if o.CertFile == "" {
		return c, time.Time{}, nil
	}
	pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("etcd client certificate (--etcd-certfile %s, --etcd-keyfile %s): %w", o.CertFile, o.KeyFile, err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, pair.Leaf.NotAfter, nil
}

// current looks at the files again if they have changed, and returns what to connect with.
func (s *security) current() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := stamps(s.options)
	if now == s.seen && s.status.Trouble == nil { // a file that may not be read does not change when it may be
		return s.config
	}
	config, expires, err := loadTLS(s.options)
	if err != nil && now != s.seen {
		s.status.ReloadErrors++
	}
	s.seen, s.status.Trouble = now, err
	if err != nil {
		return s.config
	}
	s.config, s.status.Expires = config, expires
	return s.config
}

// Security looks at the certificates on disk and says how they stand. It reads them when they have changed.
func (s *Store) Security() Security {
	if s.security == nil {
		return Security{}
	}
	s.security.current()
	s.security.mu.Lock()
	defer s.security.mu.Unlock()
	return s.security.status
}

// ClientHandshake implements [credentials.TransportCredentials].
func (s *security) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(s.current()).ClientHandshake(ctx, authority, raw)
	if err != nil {
		if ctx.Err() == nil {
			s.note(err)
		}
		return nil, nil, err
	}
	return &greeted{Conn: conn, security: s}, info, nil
}

// greeted is a connection on which the server has not spoken yet: in TLS 1.3 it says only then that it does not like our
// certificate. When it ends the connection at once, that may overtake what it said.
type greeted struct {
	net.Conn
	security *security
	heard    atomic.Bool
}

// Read implements [net.Conn].
func (g *greeted) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	var alert tls.AlertError
	switch {
	case g.heard.Load():
	case err == nil || errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls:"):
		g.heard.Store(true)
		g.security.note(err)
	default:
		g.security.hung(err)
	}
	return n, err
}

// Write implements [net.Conn].
func (g *greeted) Write(b []byte) (int, error) {
	n, err := g.Conn.Write(b)
	if err != nil && !g.heard.Load() {
		g.security.hung(err)
	}
	return n, err
}

// hung notes that the server hung up without a word. What it said on another connection tells more.
func (s *security) hung(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused == nil && !errors.Is(err, net.ErrClosed) { // we did not hang up
		s.refused = fmt.Errorf("the server ends connections without a word, as when it does not take the client certificate: %w", err)
	}
}

func (s *security) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = err
}

// why returns what the last TLS connection came to nothing by, nil if it did not or there is no TLS.
func (s *security) why() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := s.status.Expires; s.refused != nil && !end.IsZero() && time.Now().After(end) { // older servers do not say so
		return fmt.Errorf("%w: the client certificate %s is an expired certificate: it ended at %s", s.refused, s.options.CertFile, end.Format(time.DateTime))
	}
	return s.refused
}

// ServerHandshake implements [credentials.TransportCredentials]; this is a client.
func (s *security) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info implements [credentials.TransportCredentials].
func (s *security) Info() credentials.ProtocolInfo { return credentials.NewTLS(s.current()).Info() }

// Clone implements [credentials.TransportCredentials]: the certificates are the same.
func (s *security) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements [credentials.TransportCredentials]; gRPC no longer calls it.
func (s *security) OverrideServerName(string) error { return errors.ErrUnsupported }
