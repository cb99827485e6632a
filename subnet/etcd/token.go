package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// token is what etcd gives for a user name and a password, and asks for with every request. Servers forget it after a
// while, and when they restart. The client library's own renewal sends the stale token along when it asks for a new one;
// older servers refuse that, and it asks again without end (etcd issue 12549). So this asks without a token, once.
type token struct {
	user string
	file string // the password's
	auth clientv3.Auth

	asking chan struct{} // holds something while a token is asked for
	text   atomic.Value  // string, nil before it was asked for, "" while etcd wants none
}

// readPassword returns the first line of a file.
func readPassword(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("etcd password (--etcd-password-file): %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line == "" {
		return "", fmt.Errorf("etcd password (--etcd-password-file): %s has no first line", file)
	}
	return line, nil
}

// newToken returns nil without a user name.
func newToken(o Options) (*token, error) {
	if o.Username == "" {
		return nil, nil //nolint:nilnil // no user is not an error
	}
	if o.PasswordFile == "" {
		return nil, fmt.Errorf("etcd user %s has no password: give --etcd-password-file", o.Username)
	}
	if _, err := readPassword(o.PasswordFile); err != nil {
		return nil, err
	}
	return &token{user: o.Username, file: o.PasswordFile, asking: make(chan struct{}, 1)}, nil
}

const (
	authService  = "/etcdserverpb.Auth" // it gives tokens, and gets none
	watchService = "/etcdserverpb.Watch"
)

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t *token) GetRequestMetadata(_ context.Context, uri ...string) (map[string]string, error) {
	if len(uri) > 0 && strings.HasSuffix(uri[0], authService) {
		return nil, nil //nolint:nilnil // nothing to add
	}
	text := t.current()
	if text == "" {
		return nil, nil //nolint:nilnil // nothing to add
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: text}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]: the admin chose the endpoints.
func (t *token) RequireTransportSecurity() bool { return false }

// renew asks for a token in the place of old, unless somebody else has got one meanwhile.
func (t *token) renew(ctx context.Context, old string) error {
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.current() != old {
		return nil
	}
	password, err := readPassword(t.file) // it may have been changed
	if err != nil {
		return err
	}
	answer, err := request(ctx, func(ctx context.Context) (*clientv3.AuthenticateResponse, error) {
		return t.auth.Authenticate(ctx, t.user, password)
	})
	switch {
	case errors.Is(err, rpctypes.ErrAuthNotEnabled):
		t.text.Store("")
		return nil
	case err != nil:
		return fmt.Errorf("etcd user %s: %w", t.user, err)
	}
	t.text.Store(answer.Token)
	return nil
}

// current returns the token, "" without one.
func (t *token) current() string {
	if t == nil {
		return ""
	}
	text, _ := t.text.Load().(string)
	return text
}

// stale says whether the server does not know the token, or there is none yet.
func stale(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// unary makes a request again with a new token when the server does not know the old one. The first request asks for a token
// before: without one a server would take the name in our certificate for the user, who may be nobody to it.
func (t *token) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if strings.HasPrefix(method, authService) {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	if t.text.Load() == nil {
		if err := t.renew(ctx, ""); err != nil {
			return err
		}
	}
	old := t.current()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if !stale(err) && (old != "" || grpcstatus.Code(err) != codes.PermissionDenied) { // rights may count only since we asked
		return err
	}
	if err := t.renew(ctx, old); err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// stream gets a token before the first stream that wants one, and before every watch: that the server does not know the old
// one, it would say by ending the watch, and servers of version 3.4 in words that could mean anything.
func (t *token) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if old := t.current(); old == "" || strings.HasPrefix(method, watchService) {
		if err := t.renew(ctx, old); err != nil {
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				err = grpcstatus.Error(codes.Unavailable, err.Error()) // the client waits for the server, as it does without a token
			}
			return nil, err
		}
	}
	return open(ctx, desc, cc, method, opts...)
}
