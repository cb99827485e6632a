package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/e2e/lab"
)

// staleSocket leaves a socket at which nobody answers, as a killed daemon does.
func staleSocket(t *testing.T, dir string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
}

// serving runs the status server in dir until the test ends, and waits for it.
func serving(t *testing.T, dir string, w *witness) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, &options{runDir: dir}, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the server ends with %v, want %v", err, context.Canceled)
		}
	})
	must(t, lab.Eventually("the socket answers", func() error {
		_, err := ask(t.Context(), filepath.Join(dir, socketName), "/status")
		return err
	}))
}

// get asks over the socket in dir.
func get(t *testing.T, dir, method, path string) (code int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, socketName))
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://overlayd"+path, nil)
	must(t, err)
	answer, err := client.Do(req)
	must(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(t, err)
	return answer.StatusCode, string(text)
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready              bool
	NotReady, Degraded []string
}

func readyz(t *testing.T, dir string) (int, readiness) {
	t.Helper()
	code, body := get(t, dir, http.MethodGet, "/readyz")
	var r readiness
	must(t, json.Unmarshal([]byte(body), &r))
	return code, r
}

func TestTheSocketAnswersBeforeThereIsALease(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, string){
		"in an empty directory": func(*testing.T, string) {},
		"over a stale socket":   staleSocket,
		"over a file":           func(t *testing.T, dir string) { must(t, os.WriteFile(filepath.Join(dir, socketName), nil, 0o644)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			leave(t, dir)
			serving(t, dir, newWitness(&options{node: "h1", bridge: "ovl0"}, backend.Host{}))

			if code, body := get(t, dir, http.MethodGet, "/healthz"); code != http.StatusOK || body != "ok\n" {
				t.Errorf("/healthz: %d %q, want 200 ok", code, body)
			}
			code, r := readyz(t, dir)
			if code != http.StatusServiceUnavailable || r.Ready || !slices.Equal(r.NotReady, []string{"no lease yet"}) {
				t.Errorf("/readyz: %d %+v, want 503 and why: no lease yet", code, r)
			}
			if code, body := get(t, dir, http.MethodGet, "/status"); code != http.StatusOK || !json.Valid([]byte(body)) {
				t.Errorf("/status: %d %s, want 200 and JSON", code, body)
			}
			for path, want := range map[string]int{"/": http.StatusNotFound, "/metric": http.StatusNotFound} {
				if code, body := get(t, dir, http.MethodGet, path); code != want {
					t.Errorf("%s: %d %s, want %d", path, code, body, want)
				}
			}
			if code, body := get(t, dir, http.MethodPost, "/status"); code != http.StatusMethodNotAllowed {
				t.Errorf("POST /status: %d %s, want %d", code, body, http.StatusMethodNotAllowed)
			}
		})
	}
}

func TestStrangersMayNotAsk(t *testing.T) {
	dir := t.TempDir()
	serving(t, dir, newWitness(&options{node: "h1"}, backend.Host{}))
	must(t, lab.Eventually("the socket has its mode", func() error {
		info, err := os.Stat(filepath.Join(dir, socketName))
		if err == nil && info.Mode().Perm() != 0o660 {
			err = errors.New(info.Mode().String() + ", want srw-rw----")
		}
		return err
	}))
}

func TestAServerThatCannotListenSaysWhere(t *testing.T) {
	err := serve(t.Context(), &options{runDir: "/nonexistent"}, newWitness(&options{}, backend.Host{}))
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("/nonexistent/overlayd.sock")) {
		t.Errorf("%v: want /nonexistent/overlayd.sock in it", err)
	}
}

func TestStatusPrintsWhatTheDaemonSaysAndFailsUntilItIsReady(t *testing.T) {
	dir := t.TempDir()
	serving(t, dir, newWitness(&options{node: "h1", bridge: "ovl0"}, backend.Host{}))
	var people, programs bytes.Buffer
	for _, test := range []struct {
		args []string
		out  *bytes.Buffer
	}{{[]string{"status", "--run-dir", dir}, &people}, {[]string{"status", "--json", "--run-dir", dir}, &programs}} {
		if err := run(t.Context(), test.args, noEnv, test.out); !errors.Is(err, errNotReady) {
			t.Errorf("%q: %v, want %v", test.args, err, errNotReady)
		}
	}
	var r report
	must(t, json.Unmarshal(programs.Bytes(), &r))
	if r.Node != "h1" || r.PID != os.Getpid() || r.Ready {
		t.Errorf("--json prints %s, want node h1, process %d, not ready", programs.String(), os.Getpid())
	}
	for _, want := range []string{"NOT READY", "no lease yet"} {
		if !bytes.Contains(people.Bytes(), []byte(want)) {
			t.Errorf("it prints\n%s\nwant in it: %s", people.String(), want)
		}
	}
}
