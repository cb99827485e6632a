// Package runtimes lets real container runtimes call the plugin: Debian's podman and containerd run containers on hosts made
// of network namespaces. It is a package of its own because its tests need programs that no other test needs.
package runtimes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Test(m.Run)) }

// need skips a test at a desk, and fails it in CI, when a program of the runtime is not installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	lab.Need(t)
	var missing []error
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, err)
		}
	}
	switch err := errors.Join(missing...); {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%v: e2e/tools.sh installs it", err)
	default:
		t.Skipf("%v: e2e/tools.sh installs it", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// network makes hosts 192.0.2.7 and following with a running daemon each, on a network with the given configuration.
// Everything ends with the test.
func network(t *testing.T, name, config string, hosts int) []*lab.Host {
	t.Helper()
	l, err := lab.New(name, t.TempDir(), lab.Binaries())
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Logs())
		}
		if err := l.Close(); err != nil {
			t.Error("take the lab down: ", err)
		}
	})
	check(t, l.Etcd())
	var all []*lab.Host
	for i := range hosts {
		h, err := l.Host(fmt.Sprintf("host%d", i+1), fmt.Sprintf("192.0.2.%d", 7+i))
		check(t, err)
		all = append(all, h)
	}
	file := filepath.Join(t.TempDir(), "network.json")
	check(t, os.WriteFile(file, []byte(config), 0o644))
	_, err = all[0].Overlayd("config", "set", file)
	check(t, err)
	for _, h := range all {
		check(t, h.Start())
	}
	for _, h := range all {
		check(t, h.Ready(hosts-1))
	}
	return all
}
