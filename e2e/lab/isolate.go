// Package lab makes hosts out of network namespaces, for stories, benchmarks and the demo. Everything happens inside
// namespaces of the lab's own: it cannot touch the machine it runs on, and when it ends, by any signal, the kernel removes
// all of it.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside is set in the environment of the process that runs in the lab's namespaces; its value is the process's number
// as the machine outside knows it.
const inside = "OVERLAYD_LAB_INSIDE"

// entering is its value until the namespaces are furnished.
const entering = "entering"

// rootless is set beside it when the lab has a user namespace.
const rootless = "OVERLAYD_LAB_ROOTLESS"

// grace is how long the lab's process may take to end after a signal.
const grace = 10 * time.Second

// Run executes this program again inside fresh mount, process and network namespaces (and a user namespace when not
// root) and runs main there; outside it waits and returns main's result. Where the kernel does not allow such namespaces
// it runs main on the spot, and [Available] tells why.
func Run(main func() int) int {
	switch os.Getenv(roleVariable) {
	case roleEtcd:
		return serveEtcd()
	case roleNothing:
		return 0
	}
	if os.Getenv(inside) == entering {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
		return main()
	}
	if os.Getenv(inside) != "" || Available() != nil { // a fuzzer's workers are started inside
		return main()
	}
	code, err := reexec(isolation())
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return code
}

// TempDir is for files that end with the lab: it lies in the lab's own /run, in memory.
const TempDir = "/run/lab"

func isolation() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL, // process 1 of its namespace: with it everything in the lab ends
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// reexec runs this program again with its arguments and returns its exit code.
func reexec(attr *syscall.SysProcAttr) (int, error) {
	runtime.LockOSThread() // the death signal is tied to the thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec // this very program
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+entering)
	if os.Geteuid() != 0 {
		cmd.Env = append(cmd.Env, rootless+"=1")
	}
	cmd.SysProcAttr = attr
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in fresh namespaces: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s)
		case <-ended:
			return
		}
		select {
		case <-time.After(grace):
			_ = cmd.Process.Kill()
		case <-ended:
		}
	}()
	var exit *exec.ExitError
	err := cmd.Wait()
	if err := sweep(cmd.Process); err != nil {
		return 0, err
	}
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 1, nil // killed by a signal
}

// furnish makes the fresh namespaces usable: nothing mounted here is seen outside, /proc and /run are the lab's own.
func furnish() error {
	// Before /proc is replaced it still tells what the machine calls this process.
	pid, err := os.Readlink("/proc/self")
	if err := errors.Join(err, os.Setenv(inside, pid)); err != nil {
		return err
	}
	mounts := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := errors.Join(os.MkdirAll(netnsDir, 0o755), os.MkdirAll(TempDir, 0o755), os.Setenv("TMPDIR", TempDir)); err != nil {
		return err
	}
	nameProtocol()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// nameProtocol lets ip(8) inside the lab print our routing protocol by its name, where ip is installed.
func nameProtocol() {
	const dir = "/etc/iproute2/rt_protos.d"
	if root, err := ModuleRoot(); err == nil {
		_ = unix.Mount(filepath.Join(root, "dist/rt_protos.d"), dir, "", unix.MS_BIND, "") // a number is no harm
	}
}

// ModuleRoot is the directory of this module's go.mod, searched from the working directory up.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory: run this inside overlayd's source")
		}
		dir = filepath.Dir(dir)
	}
}

// Pid is the number by which the machine outside knows the lab's first process, "" outside a lab.
func Pid() string { return os.Getenv(inside) }

// Rootless says whether the lab has a user namespace, because whoever started it is not root.
func Rootless() bool { return os.Getenv(rootless) != "" }

// Available says why there can be no lab: nil inside one, and where one can be made.
func Available() error {
	if os.Getenv(inside) != "" {
		return nil
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+roleNothing)
	cmd.SysProcAttr = isolation()
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case os.Geteuid() == 0:
		return fmt.Errorf("root, but without the right to make namespaces (%w): in a container, give it CAP_SYS_ADMIN", err)
	}
	return fmt.Errorf("not root, and the kernel lets users make no namespaces (%w): run as root", err)
}

// Need skips a test that wants a lab where there can be none, and fails it in CI, where there must be one.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) != "" {
		return
	}
	reason := "TestMain does not call lab.Run"
	if err := Available(); err != nil {
		reason = err.Error()
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("needs namespaces: %s", reason)
	}
	t.Skipf("needs namespaces: %s", reason)
}
