package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// TestFirewalldIsNamedAndItsOwnCommandsOpenIt: as it comes it rejects what pods of two hosts say to each other, and VXLAN too.
// Its table is its own, a reload would sweep rules of ours away: status names chains and commands until all is open.
func TestFirewalldIsNamedAndItsOwnCommandsOpenIt(t *testing.T) {
	lab.Need(t)
	needFirewalld(t)
	s := newScene(t, "fw")
	fw := startFirewalld(t, s.host)
	for _, want := range []string{
		`nft chain inet firewalld filter_FORWARD drops packets between pods .*: firewall-cmd `,
		`nft chain inet firewalld filter_INPUT drops VXLAN from peers .*8472.*: firewall-cmd `,
	} {
		need(t, says(s.host, want))
	}
	const discard = 9
	if err := s.pods[0].Refusal(netip.AddrPortFrom(s.pods[2].Addrs[0], discard), []byte("?"), time.Second); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("pods are not cut off, or not by firewalld: %v", err)
	}
	if ready, err := isReady(s.host); err != nil || !ready {
		t.Errorf("ready is %v (%v): what others' rules drop is no fault of ours that a pass could mend", ready, err)
	}
	for range 2 { // the commands are in the words of status
		text, err := s.host.Overlayd("status")
		need(t, err)
		m := regexp.MustCompile(`to open it: (firewall-cmd [^(\n]*)`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no command in\n%s", text)
		}
		fw.run(m[1])
		need(t, lab.Eventually(m[1]+" is enough", func() error {
			if text, err := s.host.Overlayd("status"); err != nil || strings.Contains(text, m[1]) {
				return fmt.Errorf("still named (%w):\n%s", err, text)
			}
			return nil
		}))
	}
	need(t, lab.Eventually("pods reach each other", func() error { return both(s.pods[0], s.pods[2]) }))
	if log := s.host.Daemon().Log(); strings.Count(log, "filter_INPUT drops") != 1 || !strings.Contains(log, "filter_INPUT no longer drops VXLAN") {
		t.Error("the log does not tell once that it came, and that it went")
	}
	need(t, s.flowing())
}

// both has either of two pods ask the other.
func both(a, b *lab.Pod) error {
	_, there := a.Ping(b.Addrs[0])
	_, back := b.Ping(a.Addrs[0])
	return errors.Join(there, back)
}

// says waits until status of the host matches.
func says(h *lab.Host, want string) error {
	return lab.Eventually("status says "+want, func() error {
		text, err := h.Overlayd("status")
		if !regexp.MustCompile(want).MatchString(text) {
			return fmt.Errorf("it says (%w)\n%s", err, text)
		}
		return nil
	})
}

// needFirewalld skips where it is not installed: on a machine that is used, installing it would start it. CI has it.
func needFirewalld(t *testing.T) {
	t.Helper()
	for _, name := range []string{"firewalld", "firewall-cmd", "dbus-daemon"} {
		switch _, err := exec.LookPath(name); {
		case err != nil && os.Getenv("CI") != "":
			t.Fatalf("needs Debian's firewalld and dbus: %v", err)
		case err != nil:
			t.Skipf("needs Debian's firewalld and dbus: %v", err)
		}
	}
}

// firewalld is one that runs on a host, with the bus over which it is spoken to.
type firewalld struct {
	t    *testing.T
	host *lab.Host
	env  []string
}

// startFirewalld runs it as it comes, with a configuration of its own. What it does with modules fails and does not matter.
func startFirewalld(t *testing.T, h *lab.Host) firewalld {
	t.Helper()
	bus := "unix:path=" + h.Path("bus")
	f := firewalld{t, h, []string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus}}
	f.start("dbus-daemon", "--system", "--nofork", "--nopidfile", "--address="+bus)
	need(t, lab.Eventually("the bus is there", func() error {
		_, err := os.Stat(h.Path("bus"))
		return err
	}))
	f.start("firewalld", "--nofork", "--nopid", "--log-target", "console", "--system-config", h.Path("firewalld"))
	need(t, lab.Eventually("firewalld runs", func() error {
		_, err := h.Output(f.env, "firewall-cmd", "--state")
		return err
	}))
	return f
}

// start runs a program until the test ends.
func (f firewalld) start(name string, args ...string) {
	f.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), f.env...)
	need(f.t, f.host.Do(cmd.Start))
	f.t.Cleanup(func() {
		const grace = 10 * time.Second // firewalld takes its rules away
		kill := time.AfterFunc(grace, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
}

func (f firewalld) run(script string) {
	f.t.Helper()
	text, err := f.host.Output(f.env, "sh", "-ec", script)
	if err != nil {
		f.t.Fatalf("%s: %v\n%s", script, err, text)
	}
}
