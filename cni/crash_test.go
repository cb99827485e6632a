package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
)

// amount is how often a test repeats itself: little in CI, as often as the variable says at a desk.
func amount(t testing.TB, variable string, little int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return little
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// boundaries are the system calls after which something is different, in the kernel or for the caller.
var boundaries = []string{"sendto", "sendto", "write", "setns", "socket", "openat"}

// killed runs a call that is ended by SIGKILL when a thread enters the given system call for the n-th time. It returns false
// when that never came.
func (h *host) killed(t *testing.T, c call, syscall string, n int) bool {
	t.Helper()
	cmd := exec.Command(needed(t, "strace"), "-f", "-o", "/dev/null", "-e", "trace="+syscall,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", syscall, n), overlay())
	cmd.Env = []string{"CNI_COMMAND=" + c.command, "CNI_CONTAINERID=" + c.container, "CNI_NETNS=" + c.netns, "CNI_IFNAME=" + c.ifname, "CNI_PATH=" + c.env["CNI_PATH"]}
	cmd.Stdin = strings.NewReader(c.conf)
	err := h.Do(cmd.Run)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	status, _ := cmd.ProcessState.Sys().(interface {
		Signaled() bool
		Signal() unix.Signal
	})
	return status != nil && status.Signaled() && status.Signal() == unix.SIGKILL
}

// recoveries are what a runtime may do next; each must leave the host and the pod as they were.
var recoveries = map[string]func(t *testing.T, h *host, add, del call){
	"DEL": func(t *testing.T, h *host, _, del call) { h.do(t, del) },
	"DEL without a namespace": func(t *testing.T, h *host, _, del call) {
		del.netns = ""
		h.do(t, del)
	},
	"ADD, DEL": func(t *testing.T, h *host, add, del call) {
		a, err := h.run(add)
		must(t, err)
		if a.err != nil && a.err.Code != codeAttached { // the first one had ended but for its last words
			t.Errorf("ADD: %v", a.err)
		}
		h.do(t, del)
	},
	"GC": func(t *testing.T, h *host, add, del call) {
		gc := del
		gc.command, gc.conf = "GC", strings.Replace(strings.Replace(del.conf, "1.0.0", "1.1.0", 1), `"type":"overlay"`, `"type":"overlay","cni.dev/valid-attachments":[]`, 1)
		h.do(t, gc)
		must(t, h.Do(func() error { // what GC leaves is a half that says whose it is to nobody: the daemon reaps that
			return withLinkOrNone(linkOf("net", "c1", "eth0"), func(l netlink.Link) error {
				a := l.Attrs()
				if a.Alias != "" || !strings.HasPrefix(a.Name, "veth"+strings.ReplaceAll(a.HardwareAddr.String()[3:], ":", "")) {
					return fmt.Errorf("GC leaves %s %s alias %q", a.Name, a.HardwareAddr, a.Alias)
				}
				return netlink.LinkDel(l)
			})
		}))
	},
}

func withLinkOrNone(name string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	return errors.Join(err, f(l))
}

func TestADDThatIsKilledLeavesNothing(t *testing.T) {
	runs := amount(t, "OVERLAYD_CRASHES", 72)
	for recovery, mend := range recoveries {
		t.Run(recovery, func(t *testing.T) {
			t.Parallel()
			h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
			before, kills := text(t, h.Netns), 0
			for i := range runs / len(recoveries) {
				syscall, n := boundaries[i%len(boundaries)], 1+i/len(boundaries)%14
				if h.killed(t, h.add("c1", pod), syscall, n) {
					kills++
				}
				mend(t, h, h.add("c1", pod), h.del("c1", pod))
				if got, in := text(t, h.Netns), text(t, pod); got != before || in != "" {
					t.Fatalf("killed at %s %d: the host is\n%s\nwant\n%s\nthe pod is\n%s", syscall, n, got, before, in)
				}
			}
			if kills < runs/len(recoveries)/3 {
				t.Errorf("only %d of %d were killed", kills, runs/len(recoveries))
			}
			t.Logf("%d of %d were killed", kills, runs/len(recoveries))
		})
	}
}

func TestDELThatIsKilledIsEndedByTheNext(t *testing.T) {
	t.Parallel()
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	for i := range amount(t, "OVERLAYD_CRASHES", 32) / 4 {
		h.do(t, h.add("c1", pod))
		h.killed(t, h.del("c1", pod), boundaries[i%len(boundaries)], 1+i/len(boundaries)%4)
		h.do(t, h.del("c1", pod))
		same(t, "the host", text(t, h.Netns), before)
		same(t, "the pod", text(t, pod), "")
	}
}

func TestADDThatIsKilledWithHostLocalIsReleasedByDEL(t *testing.T) {
	t.Parallel()
	a := newHostLocal(t, "10.5.1.0/24")
	before := text(t, a.Netns)
	for i := range amount(t, "OVERLAYD_CRASHES", 32) / 4 {
		a.killed(t, a.ask("ADD", ""), []string{"sendto", "write", "openat", "pipe2", "clone"}[i%5], 1+i/5)
		must(t, os.RemoveAll(filepath.Join(a.data, "lock"))) // of a host-local that died with it
		a.do(t, a.ask("DEL", ""))
		same(t, "what host-local holds", a.reserved(t), "")
		same(t, "the host", text(t, a.Netns), before)
	}
}
