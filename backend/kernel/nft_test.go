package kernel_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

var update = flag.Bool("update", false, "write what the kernel has now into testdata")

// nft has an admin's script run by Debian's nft.
func nft(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, text, script)
	}
}

// iptables runs an admin's command.
func iptables(t testing.TB, args string) string {
	t.Helper()
	text, err := exec.Command("iptables", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("iptables %s: %v: %s", args, err, text)
	}
	return string(text)
}

// with returns options of a machine as [open] has them, changed.
func with(change func(*kernel.Options)) kernel.Options {
	o := kernel.Options{Node: "h1", VXLAN: "overlay.1", Bridge: "ovl0", Choice: backend.Choice{Ifaces: []string{"eth0"}}, Masquerade: true, AntiSpoof: true}
	if change != nil {
		change(&o)
	}
	return o
}

// openWith opens the machine as a daemon with other flags would.
func openWith(t *testing.T, o kernel.Options) *kernel.Kernel {
	t.Helper()
	k, err := kernel.Open(o)
	must(t, err)
	t.Cleanup(func() {
		_, err := backend.Remove(k)
		must(t, errors.Join(err, k.Close()))
	})
	return k
}

// pass makes changes until a read finds nothing to do, as a pass of the loop does, and returns what it made.
func pass(t testing.TB, k backend.Kernel, network subnet.Snapshot) []backend.Change {
	t.Helper()
	var made, changes []backend.Change
	for range 4 {
		h, have, err := k.Read()
		must(t, err)
		if changes = backend.Diff(backend.Plan(h, network), have); len(changes) == 0 {
			return made
		}
		for i, err := range k.Apply(changes) {
			if err != nil {
				t.Errorf("%s: %v", changes[i], err)
			}
		}
		made = append(made, changes...)
	}
	t.Fatalf("not settled by one pass, still:\n%s", lines(changes))
	return nil
}

func lines(changes []backend.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

func checkText(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
}

// podMAC is that of the pod that a test attaches.
const podMAC = "02:00:00:00:00:08"

// attach makes what the CNI plugin makes for a pod, and returns the name of the host's link. The bridge must be there.
func attach(t testing.TB, name string, mtu int, addrs ...string) string {
	t.Helper()
	space, err := lab.NewNetns(name)
	must(t, err)
	link := "veth" + name
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", link).Run() // where the test has not
		must(t, space.Remove())
	})
	ip(t, fmt.Sprintf("link add %s type veth peer name eth0 address %s mtu %d netns %s", link, podMAC, mtu, name))
	for _, a := range addrs {
		ip(t, "link property add dev "+link+" altname "+strings.ReplaceAll(netip.MustParseAddr(a).String(), ":", "-"))
	}
	ip(t, "link set "+link+" alias overlay/"+name+"/eth0 master ovl0 up")
	ip(t, "-n "+name+" link set eth0 up")
	return link
}

// monitor is a program that prints what happens in the kernel, for as long as the test takes.
type monitor struct {
	t    testing.TB
	mark func(n int) string // makes something happen, and says what is printed of it
	n    int
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements [io.Writer].
func (m *monitor) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.Write(b)
}

// take waits until all that has happened is printed, and returns it.
func (m *monitor) take() string {
	m.t.Helper()
	var seen string
	must(m.t, lab.Eventually("the monitor prints a mark", func() error {
		m.n++
		mark := m.mark(m.n)
		m.mu.Lock()
		defer m.mu.Unlock()
		before, _, ok := strings.Cut(m.text.String(), mark)
		if !ok {
			return fmt.Errorf("no %q", mark)
		}
		seen = before
		m.text.Reset()
		return nil
	}))
	return seen
}

func watchBy(t testing.TB, mark func(n int) string, name string, args ...string) *monitor {
	t.Helper()
	m := &monitor{t: t, mark: mark}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = m, m
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	m.take()
	return m
}

// watchIP runs "ip monitor".
func watchIP(t testing.TB) *monitor {
	return watchBy(t, func(n int) string {
		route := fmt.Sprintf("198.51.100.%d", n)
		ip(t, "route add "+route+" dev lo")
		ip(t, "route del "+route)
		return "Deleted " + route
	}, "ip", "monitor", "link", "address", "route", "neigh", "nexthop")
}
