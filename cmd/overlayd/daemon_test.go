package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet/etcd"
	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// etcdURL is on the lab's own loopback device.
const etcdURL = "http://127.0.0.1:2379"

// etcdServer runs etcd until the test ends.
func etcdServer(t *testing.T) {
	t.Helper()
	lab.Need(t)
	e, err := etcdtest.Serve(t.TempDir(), etcdURL)
	must(t, err)
	t.Cleanup(e.Close)
}

func TestADaemonWithoutAnUplinkSaysWhatItTried(t *testing.T) {
	lab.Need(t)
	empty, err := lab.NewNetns("empty")
	must(t, err)
	t.Cleanup(func() { must(t, empty.Remove()) })
	for name, test := range map[string]struct {
		flags []string
		says  []string
	}{
		"unless told":         {nil, []string{"uplink", "default route", "--iface"}},
		"by name":             {[]string{"--iface", "eth7"}, []string{"uplink", "eth7", "--iface"}},
		"by several names":    {[]string{"--iface", "eth7", "--iface", "wl.*"}, []string{"uplink", "eth7", "wl.*"}},
		"by what it reaches":  {[]string{"--iface-can-reach", "192.0.2.1"}, []string{"uplink", "192.0.2.1", "--iface-can-reach"}},
		"by its public addr.": {[]string{"--public-ip", "198.51.100.7"}, []string{"uplink"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state")}, test.flags...)
			must(t, empty.Do(func() error { says(t, args, noEnv, test.says...); return nil }))
			if _, err := os.Stat(filepath.Join(dir, "run", nodeFileName)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a node file: %v", err)
			}
			held, err := takeLock(filepath.Join(dir, "run")) // the daemon that ended holds it no more
			must(t, err)
			held.release()
		})
	}
}

const password = "s3cret-of-etcd"

// lockEtcd makes etcd want a password that is not ours.
func lockEtcd(t *testing.T) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdURL}, Logger: zap.NewNop()})
	must(t, err)
	defer c.Close()
	ctx := t.Context()
	_, err = c.RoleAdd(ctx, "root")
	must(t, err)
	_, err = c.UserAdd(ctx, "root", "another")
	must(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = c.AuthEnable(ctx)
	must(t, err)
}

func TestThePasswordIsInNoErrorText(t *testing.T) {
	etcdServer(t)
	lockEtcd(t)
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte(password+"\nmore"), 0o600))
	login := []string{"--etcd-username", "root", "--etcd-password-file", file}
	for name, args := range map[string][]string{
		"refused":        {"config", "get", "--etcd-endpoints", etcdURL},
		"refused table":  {"leases", "--etcd-endpoints", etcdURL},
		"unreachable":    {"config", "get", "--etcd-endpoints", "http://127.0.0.1:1"},
		"bad endpoint":   {"leases", "--etcd-endpoints", "127.0.0.1:1"},
		"bad authority":  {"plan", "--etcd-endpoints", "https://127.0.0.1:1", "--etcd-cafile", file},
		"bad pair":       {"plan", "--etcd-endpoints", "https://127.0.0.1:1", "--etcd-certfile", file, "--etcd-keyfile", file},
		"bad prefix":     {"leases", "--etcd-prefix", "///"},
		"file as config": {"config", "set", file, "--etcd-endpoints", etcdURL},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), append(args, login...), noEnv, &strings.Builder{})
			if err == nil || strings.Contains(err.Error(), password) {
				t.Errorf("overlayd %q says: %v\nwant an error without the password", args, err)
			}
		})
	}
}

func TestThePasswordIsInNoReport(t *testing.T) {
	etcdServer(t)
	lockEtcd(t)
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	var o options
	_, err := parse(o.groups(), []string{"--etcd-endpoints", etcdURL, "--etcd-username", "root", "--etcd-password-file", file}, noEnv)
	must(t, err)
	w := newWitness(&o, backend.Host{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		options := o.store
		options.Trouble = w.trouble
		store, err := etcd.Open(options)
		if err == nil {
			_, err = awaitConfig(ctx, store, w)
		}
		done <- err
	}()
	must(t, lab.Eventually("the daemon complains of etcd", func() error {
		if len(w.report().Degraded) == 0 {
			return errors.New("it does not")
		}
		return nil
	}))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
	text, err := json.Marshal(w.report())
	must(t, err)
	if strings.Contains(string(text), password) || !strings.Contains(string(text), "etcd") {
		t.Errorf("the report is %s\nwant etcd's trouble in it and not the password", text)
	}
}
