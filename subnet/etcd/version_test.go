package etcd_test

import (
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet/etcd"
)

// TestAWeakServerIsNamed with its version, the holes and the versions without them, to a user who may do nothing.
func TestAWeakServerIsNamed(t *testing.T) {
	t.Parallel()
	weak := serveDebian(t, "http", "--bcrypt-cost", "4")
	weak.lock(t)
	sound, away := serve(t, wide), "http://"+freeAddr(t)
	want := weak.url + " runs etcd 3.4.23"
	for _, c := range []struct {
		name, want, err string
		endpoints       []string
	}{
		{"Debian's etcd", want, "", []string{weak.url}},
		{"the newest etcd", "", "", []string{sound.url}},
		{"one of two", want, "", []string{sound.url, weak.url}},
		{"one that is away", "", "connection refused", []string{away}},
		{"one of two is away", want, "", []string{weak.url, away}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := etcd.Open(etcd.Options{Endpoints: c.endpoints, Prefix: prefix, Username: "root", PasswordFile: passwordFile(t)})
			must(t, err)
			defer s.Close()
			got, err := s.Weakness(t.Context())
			if c.err == "" {
				must(t, err)
			} else if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("failed with %v, want %s", err, c.err)
			}
			if c.want == "" && got != "" || !containsAll(got, []string{c.want}) || c.want != "" && !containsAll(got, []string{"CVE-2026-33413", "fixed in 3.5.33, 3.6.14 and 3.7.1"}) {
				t.Errorf("told %q, want %q", got, c.want)
			}
			if strings.Contains(got, sound.url) {
				t.Errorf("told %q, but %s is sound", got, sound.url)
			}
		})
	}
}
