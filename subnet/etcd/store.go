// Package etcd keeps leases in etcd, in flannel's schema and with flannel's names: hosts that run flannel in etcd mode can
// share the network. It is the only place that knows how keys and values are spelled.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
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

	CAFile            string // PEM; empty: the system's authorities. This and the next two are read again when they change
	CertFile, KeyFile string // PEM client certificate
	Username          string
	PasswordFile      string // its first line is the password; read again whenever etcd wants it

	// Trouble is told when something that is tried again does not work, and nil when it does again. It may be nil.
	Trouble func(error)
}

const (
	requestTimeout = 5 * time.Second // of every request
	pingAfter      = 10 * time.Second
	pingTimeout    = 4 * time.Second // a connection that is dead without saying so is noticed within 15 s
	reconnectMax   = 5 * time.Second
	diagnoseWithin = 800 * time.Millisecond
)

// Store is a connection to etcd. It is safe for concurrent use.
type Store struct {
	client   *clientv3.Client
	conns    *connections
	security *security // nil without TLS
	token    *token    // nil without a user name
	keys     keys
	trouble  func(error)
	seed     atomic.Pointer[view] // what a claim has just read: a watch need not list it again
	doubt    chan struct{}        // our own claim has vanished: a reason to list again
	resumed  chan struct{}        // we were stopped for a while: likewise

	reconnected hints
}

// hints say, to each of two, that a connection was made.
type hints struct{ watcher, keeper chan struct{} }

// Open prepares the connection. It does not wait for etcd. Errors are about the options.
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
	security, err := newSecurity(o)
	if err != nil {
		return nil, err
	}
	who, err := newToken(o)
	if err != nil {
		return nil, err
	}
	watcher, keeper := make(chan struct{}, 1), make(chan struct{}, 1)
	conns := &connections{open: map[*connection]struct{}{}, made: []chan struct{}{watcher, keeper}}
	dial := []grpc.DialOption{grpc.WithContextDialer(conns.dial), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax}, MinConnectTimeout: requestTimeout,
	})}
	if security != nil {
		dial = append(dial, grpc.WithTransportCredentials(security))
	}
	if who != nil {
		dial = append(dial, grpc.WithPerRPCCredentials(who), grpc.WithChainUnaryInterceptor(who.unary), grpc.WithChainStreamInterceptor(who.stream))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, DialTimeout: requestTimeout,
		DialKeepAliveTime: pingAfter, DialKeepAliveTimeout: pingTimeout, PermitWithoutStream: true,
		Logger:      zap.NewNop(), // what went wrong is told by the errors
		DialOptions: dial,
	})
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(o.Endpoints, ", "), err)
	}
	if who != nil {
		who.auth = client.Auth
	}
	trouble := func(err error) {
		if o.Trouble != nil {
			o.Trouble(Cause(err))
		}
	}
	return &Store{
		client: client, conns: conns, security: security, token: who, keys: k, trouble: trouble,
		doubt: make(chan struct{}, 1), resumed: make(chan struct{}, 1), reconnected: hints{watcher, keeper},
	}, nil
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
	if why := s.security.why(); why != nil {
		return unreachable{fmt.Errorf("etcd %s: TLS: %w", strings.Join(s.client.Endpoints(), ", "), why)}
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

// Spread is a random time by which a host waits before it reads a network of so many hosts: after a power cut or a restart
// of etcd all of them want to read at once, and each reading costs etcd as much as there are hosts. In a small network it is
// next to nothing; it is never more than two seconds.
func Spread(hosts int) time.Duration {
	const each, most = 400 * time.Microsecond, 2 * time.Second
	return rand.N(min(most, time.Duration(hosts)*each) + 1)
}

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
