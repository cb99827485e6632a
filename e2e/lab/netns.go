package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) looks for namespaces by name; inside the lab it is the lab's own.
const netnsDir = "/run/netns"

// Netns is a network namespace with a name.
type Netns struct{ Name string }

// NewNetns makes a namespace with its loopback device up.
func NewNetns(name string) (*Netns, error) {
	n := &Netns{Name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		file, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", n.Path(), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return n, nil
}

// Path is the namespace's file, as CNI_NETNS has it.
func (n *Netns) Path() string { return filepath.Join(netnsDir, n.Name) }

// Do runs f on a thread of its own inside the namespace. Sockets opened and processes started by f belong to it.
func (n *Netns) Do(f func() error) error {
	return onThread(func() error {
		file, err := os.Open(n.Path())
		if err != nil {
			return err
		}
		err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// Remove takes the name away; the namespace goes with its last process and socket.
func (n *Netns) Remove() error {
	return errors.Join(unix.Unmount(n.Path(), unix.MNT_DETACH), os.Remove(n.Path()))
}

// onThread runs f on a thread that is thrown away afterwards, whatever f did to it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}
