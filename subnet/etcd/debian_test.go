package etcd_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// debian is the etcd that Debian has, 3.4: old enough for what newer servers have been cured of.
type debian struct {
	*network
	flags []string
	out   *bytes.Buffer
	cmd   *exec.Cmd
	done  chan struct{}
}

// needDebian skips a test where there is no such server, and fails it in CI, where there must be one.
func needDebian(t *testing.T) string {
	t.Helper()
	name, err := exec.LookPath("etcd")
	switch {
	case err == nil:
		return name
	case os.Getenv("CI") != "":
		t.Fatalf("needs Debian's etcd-server: %v", err)
	default:
		t.Skipf("needs Debian's etcd-server: %v", err)
	}
	return ""
}

// serveDebian starts a server with further flags, at https if there are any for TLS.
func serveDebian(t *testing.T, scheme string, flags ...string) *debian {
	t.Helper()
	url, peer := scheme+"://"+freeAddr(t), "http://"+freeAddr(t)
	d := &debian{network: &network{url: url, dir: t.TempDir()}}
	d.flags = append([]string{
		"--name", "lab", "--data-dir", d.dir, "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "lab=" + peer, "--logger", "zap", "--log-outputs", "stderr", "--log-level", "error",
		"--heartbeat-interval", "20", "--election-timeout", "200",
	}, flags...)
	d.start(t)
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("etcd says\n%s", d.out)
		}
	})
	return d
}

// start starts the server, or the same again after it was stopped. It does not wait: whoever speaks to it does.
func (d *debian) start(t *testing.T) {
	t.Helper()
	name := needDebian(t)
	d.out, d.done = &bytes.Buffer{}, make(chan struct{})
	d.cmd = exec.Command(name, d.flags...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the death signal is tied to the thread
		defer runtime.UnlockOSThread()
		started <- d.cmd.Start()
		_ = d.cmd.Wait() // it is killed
		close(d.done)
	}()
	must(t, <-started)
}

// stop kills the server; its data stays.
func (d *debian) stop() {
	_ = d.cmd.Process.Kill() // or it has ended
	<-d.done
}

const secret = "open sesame"

// lock makes the server ask for the user root's password, the secret, from now on.
func (n *network) lock(t *testing.T) {
	t.Helper()
	c := dial(t, n.url)
	for _, ask := range []func() error{
		func() error { _, err := c.Put(t.Context(), prefix+"/config", wide); return err },
		func() error { _, err := c.UserAdd(t.Context(), "root", secret); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := c.AuthEnable(t.Context()); return err },
	} {
		must(t, ask())
	}
}

// login is a client of the library's own for the user root, which must have just one short life: it would not outlive its
// token.
func (n *network) login(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.url}, Username: "root", Password: secret})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// settle makes sure that a restart forgets the tokens. The server keeps no token, but asks for those that it gave after it
// last wrote to disk are in its log, and are done again.
func (d *debian) settle(t *testing.T) {
	t.Helper()
	root := d.login(t)
	_, err := root.Put(t.Context(), "/mark", "")
	must(t, err)
	_, err = root.Defragment(t.Context(), d.url)
	must(t, err)
}

var authentications = regexp.MustCompile(`(?m)^grpc_server_started_total{grpc_method="Authenticate",.*} (\d+)$`)

// asked is how often the server, since its start, was asked for a token.
func (d *debian) asked(t *testing.T) int {
	t.Helper()
	answer, err := http.Get(d.url + "/metrics")
	must(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(t, err)
	found := authentications.FindSubmatch(text)
	if found == nil {
		t.Fatalf("no count of Authenticate in\n%s", text)
	}
	n, err := strconv.Atoi(string(found[1]))
	must(t, err)
	return n
}

// passwordFile writes the secret where a store reads it.
func passwordFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(name, []byte(secret+"\n"), 0o600))
	return name
}
