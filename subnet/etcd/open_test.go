package etcd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/overlayd/overlayd/subnet/etcd"
)

// TestWrongOptionsAreRefusedWithTheirValueAndTheRemedy opens nothing: no server is there.
func TestWrongOptionsAreRefusedWithTheirValueAndTheRemedy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		must(t, os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	empty, junk, gone := file("empty", ""), file("junk", "junk"), filepath.Join(dir, "gone")
	const plain, secure = "http://127.0.0.1:2379", "https://127.0.0.1:2379"
	at := func(endpoints ...string) etcd.Options { return etcd.Options{Endpoints: endpoints, Prefix: prefix} }
	under := func(p string) etcd.Options { return etcd.Options{Endpoints: []string{plain}, Prefix: p} }
	login := func(password string) etcd.Options {
		return etcd.Options{Endpoints: []string{plain}, Prefix: prefix, Username: "root", PasswordFile: password}
	}
	tls := func(endpoint, ca, cert, key string) etcd.Options {
		return etcd.Options{Endpoints: []string{endpoint}, Prefix: prefix, CAFile: ca, CertFile: cert, KeyFile: key}
	}
	for _, c := range []struct {
		name string
		o    etcd.Options
		want []string
	}{
		{"no endpoint", at(), []string{"--etcd-endpoints"}},
		{"an endpoint without a scheme", at("127.0.0.1:2379"), []string{`"127.0.0.1:2379"`, "http://192.0.2.1:2379"}},
		{"an endpoint of another scheme", at("ftp://127.0.0.1:2379"), []string{`"ftp://127.0.0.1:2379"`, "http://192.0.2.1:2379"}},
		{"an endpoint without a host", at("http://"), []string{`"http://"`, "http://192.0.2.1:2379"}},
		{"an endpoint without a port", at("http://127.0.0.1"), []string{`"http://127.0.0.1"`, ":2379"}},
		{"an empty endpoint beside a good one", at(plain, ""), []string{`""`, "http://192.0.2.1:2379"}},
		{"a URL that cannot be read", at("http://%zz"), []string{"%zz", "http://192.0.2.1:2379"}},

		{"a password in an endpoint", at("http://root:secret@127.0.0.1:2379"), []string{"127.0.0.1:2379", "--etcd-password-file"}},

		{"no prefix", under(""), []string{`""`, "/overlayd/network"}},
		{"a prefix without a slash before", under("overlayd"), []string{`"overlayd"`, "/overlayd/network"}},
		{"a prefix with a slash behind", under("/overlayd/"), []string{`"/overlayd/"`, "without a slash at the end"}},
		{"the whole store", under("/"), []string{`"/"`, "/overlayd/network"}},
		{"a prefix with a space", under("/over layd"), []string{`"/over layd"`, "/overlayd/network"}},

		{"no CA file", tls(secure, gone, "", ""), []string{"etcd CA", gone, "no such file"}},
		{"a CA file that holds none", tls(secure, junk, "", ""), []string{"etcd CA", junk, "PEM certificate"}},
		{"no certificate file", tls(secure, "", gone, junk), []string{"etcd client certificate", gone, "no such file"}},
		{"no key file", tls(secure, "", junk, gone), []string{"etcd client certificate", gone, "no such file"}},
		{"a certificate file that holds none", tls(secure, "", junk, junk), []string{"etcd client certificate", "PEM"}},
		{"a certificate without a key", tls(secure, "", junk, ""), []string{"--etcd-certfile", "--etcd-keyfile"}},
		{"a key without a certificate", tls(secure, "", "", junk), []string{"--etcd-certfile", "--etcd-keyfile"}},
		{"TLS files without https", tls(plain, junk, "", ""), []string{plain, "https"}},

		{"a user without a password", login(""), []string{"root", "--etcd-password-file"}},
		{"no password file", login(gone), []string{"etcd password", gone, "no such file"}},
		{"an empty password file", login(empty), []string{"etcd password", empty, "first line"}},
		{"a password file that begins with an empty line", login(file("late", "\nsecret\n")), []string{"etcd password", "first line"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := etcd.Open(c.o)
			if err == nil {
				must(t, s.Close())
				t.Fatalf("opened; want an error with %q", c.want)
			}
			if !containsAll(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("--- have\n%s\n--- want the words\n%s", err, strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestOpenDoesNotWaitForEtcd(t *testing.T) {
	t.Parallel()
	url := "http://" + freeAddr(t)
	start := time.Now()
	s, err := etcd.Open(etcd.Options{Endpoints: []string{url}, Prefix: prefix})
	must(t, err)
	defer s.Close()
	if err := s.Reach(t.Context()); err == nil || !containsAll(err.Error(), []string{url, "connection refused"}) {
		t.Errorf("--- have\n%v\n--- want\n%s and why it cannot be reached", err, url)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestOneOfSeveralEndpointsIsEnough(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	s, err := etcd.Open(etcd.Options{Endpoints: []string{"http://" + freeAddr(t), n.url}, Prefix: prefix})
	must(t, err)
	defer s.Close()
	must(t, s.Reach(t.Context()))
	text, err := s.Config(t.Context())
	must(t, err)
	same(t, text, wide)
}

func TestAWrongConfigurationIsNotWritten(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	s := n.host(t, "host1", "192.0.2.7").store
	if err := s.Configure(t.Context(), `{"Network":"10.5.0.0"}`); err == nil || !containsAll(err.Error(), []string{"Network", "10.5.0.0"}) {
		t.Errorf("configured: %v", err)
	}
	same(t, n.textOf(t, "/config"), wide)
}

// TestThePasswordIsTheFirstLineOfItsFile and is asked for by a server that knows users.
func TestThePasswordIsTheFirstLineOfItsFile(t *testing.T) {
	t.Parallel()
	url := launch(t, "http", func(c *embed.Config) { c.BcryptCost = 4 }) // the usual one takes seconds under the race detector
	root := dial(t, url)
	for _, ask := range []func() error{
		func() error { _, err := root.Put(t.Context(), prefix+"/config", wide); return err },
		func() error { _, err := root.UserAdd(t.Context(), "root", "open sesame"); return err },
		func() error { _, err := root.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := root.AuthEnable(t.Context()); return err },
	} {
		must(t, ask())
	}
	name := filepath.Join(t.TempDir(), "password")
	for text, want := range map[string]string{"open sesame\nnotes\n": "", "open sesame": "", "wrong\n": "authentication failed"} {
		must(t, os.WriteFile(name, []byte(text), 0o600))
		s, err := etcd.Open(etcd.Options{Endpoints: []string{url}, Prefix: prefix, Username: "root", PasswordFile: name})
		must(t, err)
		got, err := s.Config(t.Context())
		if want != "" {
			if err == nil || !containsAll(err.Error(), []string{"root", want}) || strings.Contains(err.Error(), "wrong") {
				t.Errorf("%q: %v, want %s", text, err, want)
			}
		} else {
			must(t, err)
			same(t, got, wide)
		}
		must(t, s.Close())
	}
}
