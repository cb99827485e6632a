package main

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// pod is the network namespace that is to be attached.
type pod struct {
	path    string
	fd, own int   // the namespace, and the plugin's own
	index   int   // of the pod's side, once it was looked up
	kernel  *conn // a socket of the namespace, once it was entered: it speaks for that from anywhere
}

// openPod refuses what is no network namespace, and the plugin's own: a path under /proc can come to mean the host.
func openPod(path string) (*pod, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, badNetns(path, err.Error())
	}
	p := &pod{path: path, fd: fd, own: -1}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		p.close()
		return nil, badNetns(path, "is not a network namespace")
	}
	if p.own, err = unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		p.close()
		return nil, badNetns(ownNetns, err.Error())
	}
	if err := notOwn(path); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pod) close() {
	if p.kernel != nil {
		p.kernel.close()
	}
	_ = unix.Close(p.own)
	_ = unix.Close(p.fd)
}

const ownNetns = "/proc/thread-self/ns/net"

// notOwn refuses the namespace that the plugin itself runs in: the host's. What does not exist is not it.
func notOwn(path string) error {
	var own, given unix.Stat_t
	if err := unix.Stat(ownNetns, &own); err != nil {
		return badNetns(ownNetns, err.Error())
	}
	if err := unix.Stat(path, &given); err == nil && own.Dev == given.Dev && own.Ino == given.Ino {
		return badNetns(path, "is the host's own network namespace: nothing was touched")
	}
	return nil
}

// atHome runs f on another thread than the caller's, which may be in a pod's namespace: other plugins start from here.
func atHome(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}

// do runs f inside the namespace, on the calling thread, which then comes home. No other goroutine runs on that thread any
// more (see [atHome]).
func (p *pod) do(f func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(p.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", p.path, err)
	}
	err := f()
	if home := unix.Setns(p.own, unix.CLONE_NEWNET); home != nil {
		err = errors.Join(err, fmt.Errorf("leave %s: %w", p.path, home))
	}
	return err
}
