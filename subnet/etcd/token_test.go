package etcd_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/overlayd/overlayd/subnet/etcd"
)

// guest is a host that has the user root's password. Its lease is the shortest.
func (n *network) guest(t *testing.T, node, ip, file string) *host {
	t.Helper()
	h := hostWith(t, node, ip, etcd.Options{Endpoints: []string{n.url}, Prefix: prefix, Username: "root", PasswordFile: file})
	h.terms.TTL = etcd.MinTTL
	return h
}

// TestTokensThatExpireAreNoTrouble: the server forgets a token that was not used for a second, and nobody above the store
// hears of it.
func TestTokensThatExpireAreNoTrouble(t *testing.T) {
	t.Parallel()
	for name, launched := range map[string]func(t *testing.T) *network{
		"Debian's etcd": func(t *testing.T) *network {
			return serveDebian(t, "http", "--auth-token-ttl", "1", "--bcrypt-cost", "4").network
		},
		"the newest etcd": func(t *testing.T) *network {
			return &network{url: launch(t, "http", func(c *embed.Config) { c.AuthTokenTTL, c.BcryptCost = 1, 4 })}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := launched(t)
			n.lock(t)
			h := n.guest(t, "host1", "192.0.2.7", passwordFile(t))
			c := h.claim(t)
			w := h.watch(t)
			eventually(t, func() string { return fmt.Sprint(len(w.all()) > 0) }, "true")
			k := keep(t, c)
			idle := n.guest(t, "onlooker", "192.0.2.8", passwordFile(t))
			for i := range 2 {
				// Between two requests of the idle host its token is forgotten: it lives for at most 2 s.
				end := now() + 2500*time.Millisecond
				until(t, func() bool { return now() > end }, nil)
				s, err := idle.store.List(t.Context())
				must(t, err)
				same(t, describe(s), w.last())
				if i == 0 {
					_, err = n.login(t).Put(t.Context(), prefix+"/subnets/10.5.9.0-24", `{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"}}`)
					must(t, err)
					until(t, func() bool { return strings.Contains(w.last(), "192.0.2.9") }, w.last)
				}
			}
			renewed := len(k.renewals())
			until(t, func() bool { return len(k.renewals()) > renewed+1 }, func() string { return "no renewal" })
			for _, err := range append(h.told.all(), idle.told.all()...) {
				if err != nil {
					t.Errorf("told %v", err)
				}
			}
		})
	}
}

// TestAServerThatForgotAllTokensGivesNewOnes: tokens do not outlive a restart. The library's own renewal sends the stale
// token along when it asks for another, which this server refuses, and asks again without end.
func TestAServerThatForgotAllTokensGivesNewOnes(t *testing.T) {
	t.Parallel()
	d := serveDebian(t, "http", "--bcrypt-cost", "4")
	d.lock(t)
	h := d.guest(t, "host1", "192.0.2.7", passwordFile(t))
	h.terms.TTL = 8 * time.Second
	c := h.claim(t)
	w := h.watch(t)
	until(t, func() bool { return len(w.all()) > 0 }, func() string { return "nothing heard" })
	k := keep(t, c)
	lease := h.leases(t)
	d.settle(t)
	d.stop()
	h.told.await(t, nil, "connection refused")
	d.start(t)
	renewed := len(k.renewals())
	until(t, func() bool { return len(k.renewals()) > renewed+1 }, func() string { return fmt.Sprint(h.told.all()) })
	_, err := d.login(t).Put(t.Context(), prefix+"/subnets/10.5.9.0-24", `{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"}}`)
	must(t, err)
	until(t, func() bool { return strings.Contains(w.last(), "192.0.2.9") }, w.last)
	h.told.awaitEnd(t)
	if !strings.HasPrefix(h.leases(t), lease) {
		t.Errorf("\n%s", both(h.leases(t), lease))
	}
	for _, err := range h.told.all() {
		if err != nil && strings.Contains(err.Error(), "etcdserver:") { // that it was away is another matter
			t.Errorf("told %v", err)
		}
	}
	if n := d.asked(t); n > 6 {
		t.Errorf("the server was asked for a token %d times", n)
	}
}

// TestAWrongPasswordIsToldAndNothingHangs: the server restarts while the file holds a wrong password.
func TestAWrongPasswordIsToldAndNothingHangs(t *testing.T) {
	t.Parallel()
	d := serveDebian(t, "http", "--bcrypt-cost", "4", "--auth-token-ttl", "1")
	d.lock(t)
	file := passwordFile(t)
	h := d.guest(t, "host1", "192.0.2.7", file)
	c := h.claim(t)
	w := h.watch(t)
	until(t, func() bool { return len(w.all()) > 0 }, func() string { return "nothing heard" })
	must(t, os.WriteFile(file, []byte("wrong horse\n"), 0o600))
	d.settle(t)
	d.stop()
	d.start(t)
	var told error
	until(t, func() bool {
		start := now()
		_, told = h.store.List(t.Context())
		if took := now() - start; took > 7*time.Second { // 5 s is the deadline of a request
			t.Errorf("an answer took %s", took)
		}
		return told != nil && containsAll(told.Error(), []string{"etcd user root", "authentication failed"})
	}, func() string { return fmt.Sprint(told) })
	k := keep(t, c)
	h.told.await(t, nil, "etcd user root", "authentication failed")
	end := now() + 2*time.Second
	until(t, func() bool { return now() > end }, nil)
	if n := d.asked(t); n > 60 {
		t.Errorf("the server was asked for a token %d times", n)
	}
	deep(t)
	must(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
	until(t, func() bool { return len(k.renewals()) > 1 }, func() string { return fmt.Sprint(h.told.all()) })
	h.told.awaitEnd(t)
	for _, err := range h.told.all() {
		if err != nil && (strings.Contains(err.Error(), "wrong horse") || strings.Contains(err.Error(), secret)) {
			t.Errorf("a password was told: %v", err)
		}
	}
}

// deep fails when a goroutine has called itself over and over.
func deep(t *testing.T) {
	t.Helper()
	buf := make([]byte, 16<<20)
	text := string(buf[:runtime.Stack(buf, true)])
	if strings.Contains(text, "frames elided") {
		t.Errorf("a goroutine is deep in itself:\n%s", text)
	}
}

// leases are the etcd leases of the keys of a host's own, in words.
func (h *host) leases(t *testing.T) string {
	t.Helper()
	s, err := h.store.List(t.Context())
	must(t, err)
	return describe(s)
}
