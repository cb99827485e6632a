package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
)

// pod is the network namespace that is to be attached.
type pod struct {
	path string
	file *os.File
	link *netlink.Handle // a socket of it, once it was entered: it speaks for the namespace from any thread
}

// openPod refuses what is no network namespace, and the plugin's own: a path under /proc can come to mean the host.
func openPod(path string) (*pod, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, badNetns(path, err.Error())
	}
	p := &pod{path: path, file: file}
	if kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		p.close()
		return nil, badNetns(path, "is not a network namespace")
	}
	if err := notOwn(path); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pod) close() {
	if p.link != nil {
		p.link.Close()
	}
	_ = p.file.Close()
}

// notOwn refuses the namespace that the plugin itself runs in: the host's. What does not exist is not it.
func notOwn(path string) error {
	var own, given unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return badNetns("/proc/thread-self/ns/net", err.Error())
	}
	if err := unix.Stat(path, &given); err == nil && own.Dev == given.Dev && own.Ino == given.Ino {
		return badNetns(path, "is the host's own network namespace: nothing was touched")
	}
	return nil
}

// do runs f inside the namespace. The thread that enters is never used again.
func (p *pod) do(f func(*netlink.Handle) error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Setns(int(p.file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", p.path, err)
			}
			var err error
			if p.link, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
				return fmt.Errorf("netlink in %s: %w", p.path, err)
			}
			return f(p.link)
		}()
	}()
	return <-result
}
