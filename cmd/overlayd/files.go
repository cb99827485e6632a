package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/subnet"
)

// lock keeps a second daemon away.
type lock struct{ file *os.File }

// errRunning says that a daemon holds the lock.
var errRunning = errors.New("another overlayd runs on this host")

// takeLock refuses when another process holds the lock, and names it.
func takeLock(dir string) (lock, error) {
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return lock{}, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		holder, _ := os.ReadFile(path)
		return lock{}, fmt.Errorf("%w as process %s (lock %s): stop that one first (systemctl stop overlayd)", errRunning, strings.TrimSpace(string(holder)), path)
	}
	text := fmt.Sprintln(os.Getpid())
	if err := errors.Join(file.Truncate(0), writeAt(file, text)); err != nil {
		_ = file.Close()
		return lock{}, fmt.Errorf("lock: %w", err)
	}
	return lock{file: file}, nil
}

// stopHolder ends the daemon that holds the lock, and takes the lock in its place.
func stopHolder(ctx context.Context, dir string) (lock, error) {
	text, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		return lock{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return lock{}, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return lock{}, fmt.Errorf("stop process %d: %w", pid, err)
	}
	const tries = 10
	for range tries {
		held, err := takeLock(dir)
		if !errors.Is(err, errRunning) {
			return held, err
		}
		if err := pause(ctx); err != nil {
			return lock{}, err
		}
	}
	return lock{}, fmt.Errorf("process %d does not stop: stop it first (systemctl disable --now overlayd)", pid)
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// release lets others take the lock. The file stays: removing it would let two hold it.
func (l lock) release() { _ = l.file.Close() }

// bootID identifies this boot of the host (proc_sys_kernel(5), random).
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Files under the run directory, and under the state directory.
const (
	nodeFileName  = "node.json"
	subnetEnvName = "subnet.env"
	socketName    = "overlayd.sock"

	networkName = "network"
	badName     = "network.bad"
)

// loadNetwork returns the network of the prefix as it was last saved. A damaged file is set aside, and is no error.
func loadNetwork(dir, prefix string) (subnet.Snapshot, bool) {
	path := filepath.Join(dir, networkName)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return subnet.Snapshot{}, false
	}
	var n subnet.Snapshot
	if err == nil {
		n, err = subnet.Load(text, prefix)
	}
	if errors.Is(err, subnet.ErrSaved) {
		err = errors.Join(err, os.Rename(path, filepath.Join(dir, badName)))
	}
	if err != nil {
		klog.Warningf("%s is of no use, going on without: %v", path, err)
		return subnet.Snapshot{}, false
	}
	return n, true
}
