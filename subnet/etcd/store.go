// Package etcd keeps leases in etcd, in flannel's schema and with flannel's names: hosts that run flannel in etcd mode can
// share the network. It is the only place that knows how keys and values are spelled.
package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// Options says where the store is and how to speak to it.
type Options struct {
	Endpoints []string // URLs; https means TLS
	Prefix    string   // of all keys, without a slash at the end

	CAFile            string // PEM; empty: the system's authorities
	CertFile, KeyFile string // PEM client certificate; read again at each connection
	Username          string
	PasswordFile      string // its first line is the password

	// Trouble is told when something that is tried again does not work, and nil when it does again. It may be nil.
	Trouble func(error)
}

const (
	requestTimeout = 5 * time.Second // of every request
	pingAfter      = 10 * time.Second
	pingTimeout    = 5 * time.Second // a connection that is dead without saying so is noticed within 15 s
	reconnectMax   = 5 * time.Second
	diagnoseWithin = 800 * time.Millisecond
)

// Store is a connection to etcd. It is safe for concurrent use.
type Store struct {
	client  *clientv3.Client
	conns   *connections
	keys    keys
	trouble func(error)
	seed    atomic.Pointer[view] // what a claim has just read: a watch need not list it again
	doubt   chan struct{}        // our own claim has vanished: a reason to list again
}

// Open prepares the connection. It does not wait for etcd, except with a user name, which needs a token. Errors are about
// the options, or with a user name about etcd.
func Open(o Options) (*Store, error) {
	if len(o.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoint: give --etcd-endpoints")
	}
	for _, e := range o.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return nil, err
		}
	}
	k, err := newKeys(o.Prefix)
	if err != nil {
		return nil, err
	}
	security, err := tlsConfig(o)
	if err != nil {
		return nil, err
	}
	password, err := readPassword(o)
	if err != nil {
		return nil, err
	}
	conns := &connections{open: map[*connection]struct{}{}}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: security, Username: o.Username, Password: password,
		DialTimeout: requestTimeout, DialKeepAliveTime: pingAfter, DialKeepAliveTimeout: pingTimeout, PermitWithoutStream: true,
		Logger: zap.NewNop(), // what went wrong is told by the errors
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(conns.dial), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax}, MinConnectTimeout: requestTimeout,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(o.Endpoints, ", "), err)
	}
	trouble := func(err error) {
		if o.Trouble != nil {
			o.Trouble(Cause(err))
		}
	}
	return &Store{client: client, conns: conns, keys: k, trouble: trouble, doubt: make(chan struct{}, 1)}, nil
}

func checkEndpoint(e string) error {
	u, err := url.Parse(e)
	if err == nil && u.User != nil {
		return fmt.Errorf("etcd endpoint at %s holds a user or password: give --etcd-username and --etcd-password-file", u.Host)
	}
	if err != nil || u.Hostname() == "" || u.Port() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("etcd endpoint %q: want a URL such as http://192.0.2.1:2379 or https://etcd.example:2379, with a port", e)
	}
	return nil
}

// Close ends the connection. Leases stay as they are.
func (s *Store) Close() error { return s.client.Close() }

func readPassword(o Options) (string, error) {
	if o.Username == "" {
		return "", nil
	}
	if o.PasswordFile == "" {
		return "", fmt.Errorf("etcd user %s has no password: give --etcd-password-file", o.Username)
	}
	text, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("etcd password: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line == "" {
		return "", fmt.Errorf("etcd password: %s has no first line", o.PasswordFile)
	}
	return line, nil
}

// tlsConfig returns nil when no endpoint wants TLS.
func tlsConfig(o Options) (*tls.Config, error) {
	secure := false
	for _, e := range o.Endpoints {
		secure = secure || strings.HasPrefix(e, "https:")
	}
	if !secure {
		if o.CertFile != "" || o.CAFile != "" {
			return nil, fmt.Errorf("TLS files are given, but no etcd endpoint of %s begins with https", strings.Join(o.Endpoints, ", "))
		}
		return nil, nil //nolint:nilnil // no TLS is not an error
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd CA: %s holds no PEM certificate", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("etcd client certificate: give both --etcd-certfile and --etcd-keyfile")
	}
	if o.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("etcd client certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

// Reach says quickly, by plain TCP, whether any endpoint answers: the client itself would wait for its deadline and
// could not say why. It blocks for less than a second.
func (s *Store) Reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, diagnoseWithin)
	defer cancel()
	endpoints := s.client.Endpoints()
	answers := make(chan error, len(endpoints))
	for _, e := range endpoints {
		go func() { answers <- reach(ctx, e) }()
	}
	var all []error
	for range endpoints {
		err := <-answers
		if err == nil {
			return nil
		}
		all = append(all, err)
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return unreachable{errors.Join(all...)}
}

func reach(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return fmt.Errorf("etcd %s: %w", endpoint, err)
	}
	return c.Close()
}

// unreachable says that etcd cannot be reached at all.
type unreachable struct{ error }

// Cause returns why etcd could not be reached, if that is what err comes from, else err: one cause is one trouble, whatever
// was being tried.
func Cause(err error) error {
	var u unreachable
	if errors.As(err, &u) {
		return u
	}
	return err
}

// Unwrap gives the cause.
func (u unreachable) Unwrap() error { return u.error }

// explain adds to a request that got no answer why there was none.
func (s *Store) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && grpcstatus.Code(err) != codes.Unavailable {
		return err
	}
	if why := s.Reach(ctx); why != nil {
		return why
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("etcd %s accepts connections and does not answer: %w", strings.Join(s.client.Endpoints(), ", "), err)
}

// request runs f with the deadline that every request has.
func request[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return f(ctx)
}

// retry is the pause between attempts: it grows, and has jitter so that hosts do not return in step.
type retry struct{ pause time.Duration }

const (
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// next returns the next pause.
func (r *retry) next() time.Duration {
	r.pause = min(retryMax, max(retryMin, 2*r.pause))
	return jitter(r.pause)
}

// wait pauses, and returns the context's error if that ends first.
func (r *retry) wait(ctx context.Context) error { return sleep(ctx, r.next()) }

func (r *retry) reset() { r.pause = 0 }

// jitter returns between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
