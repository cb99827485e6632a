package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lab is an underlay: a switch in a namespace of its own, an etcd server, and hosts. Make one with [New]; not for
// concurrent use.
type Lab struct {
	Name     string // begins the names of its namespaces: several labs can be in one process
	Dir      string // logs, etcd's data, hosts' directories
	Binaries string // directory with overlayd and overlay

	underlay *Netns
	etcd     *Netns
	server   *Process
	cluster  *Cluster // in the place of the server
	hosts    []*Host
}

// Addresses of the underlay, from a range for documentation (RFC 5737).
const (
	EtcdAddr     = "192.0.2.1"
	EtcdEndpoint = "http://" + EtcdAddr + ":2379"
	underlayBits = 24
)

// Patience bounds every wait of the lab.
const Patience = 40 * time.Second

// New makes the switch. The caller closes the lab.
func New(name, dir, binaries string) (*Lab, error) {
	l := &Lab{Name: name, Dir: dir, Binaries: binaries}
	err := depend()
	if err != nil {
		return nil, err
	}
	if l.underlay, err = NewNetns(l.scoped("underlay")); err != nil {
		return nil, err
	}
	err = l.underlay.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "switch"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge))
	})
	if err != nil {
		return nil, fmt.Errorf("make the switch: %w", err)
	}
	return l, nil
}

func (l *Lab) scoped(name string) string {
	if l.Name == "" {
		return name
	}
	return l.Name + "-" + name
}

// Underlay is the namespace of the switch; each host's cable ends there in a port of the host's name.
func (l *Lab) Underlay() *Netns { return l.underlay }

// Close ends all processes and gives all names back.
func (l *Lab) Close() error {
	var errs []error
	spaces := []*Netns{l.underlay}
	for _, h := range l.hosts {
		if h.daemon != nil {
			errs = append(errs, h.daemon.End(unix.SIGKILL))
		}
		for _, p := range h.pods {
			spaces = append(spaces, p.Netns)
		}
		spaces = append(spaces, h.Netns)
	}
	if l.server != nil {
		errs = append(errs, l.server.End(unix.SIGKILL))
	}
	if l.etcd != nil {
		spaces = append(spaces, l.etcd)
	}
	errs = append(errs, l.cluster.close()...)
	for _, n := range spaces {
		errs = append(errs, n.Remove())
	}
	return errors.Join(errs...)
}

// plug connects a namespace to the switch by a cable: eth0 there, a port of the given name here.
func (l *Lab) plug(n *Netns, port, addr string) error {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	err = l.underlay.Do(func() error {
		bridge, err := netlink.LinkByName("switch")
		if err != nil {
			return err
		}
		file, err := os.Open(n.Path())
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // only its number is used
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.Flags = port, bridge.Attrs().Index, net.FlagUp
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(file.Fd())})
	})
	if err != nil {
		return fmt.Errorf("plug %s in: %w", n.Name, err)
	}
	return n.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		bits := underlayBits
		if !ip.Is4() {
			bits = 64
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}, Flags: unix.IFA_F_NODAD}
		return errors.Join(netlink.LinkSetUp(eth0), netlink.AddrAdd(eth0, a))
	})
}

// Cut pulls a host's cable, and Heal puts it back.
func (l *Lab) Cut(host string) error { return l.cable(host, netlink.LinkSetDown) }

// Heal undoes [Lab.Cut].
func (l *Lab) Heal(host string) error { return l.cable(host, netlink.LinkSetUp) }

func (l *Lab) cable(port string, set func(netlink.Link) error) error {
	return l.underlay.Do(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("cable of %s: %w", port, err)
		}
		return set(link)
	})
}

// EtcdHost is the namespace of the etcd server, nil before the first start.
func (l *Lab) EtcdHost() *Netns { return l.etcd }

// Etcd starts the etcd server, or the same again after it was stopped, and waits until it answers.
func (l *Lab) Etcd() error {
	if l.etcd == nil {
		var err error
		if l.etcd, err = NewNetns(l.scoped("etcd")); err != nil {
			return err
		}
		if err := l.plug(l.etcd, "etcd", EtcdAddr); err != nil {
			return err
		}
	}
	var err error
	l.server, err = start(l.etcd, filepath.Join(l.Dir, "etcd.log"), []string{roleVariable + "=" + roleEtcd, dataVariable + "=" + filepath.Join(l.Dir, "etcd")}, "/proc/self/exe")
	if err != nil {
		return err
	}
	return l.etcd.Do(func() error {
		return Eventually("etcd answers", func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(EtcdAddr, "2379"), time.Second)
			if err != nil {
				return err
			}
			return c.Close()
		})
	})
}

// WipeEtcd makes the server start again with nothing.
func (l *Lab) WipeEtcd() error {
	if err := errors.Join(l.StopEtcd(), os.RemoveAll(filepath.Join(l.Dir, "etcd"))); err != nil {
		return err
	}
	return l.Etcd()
}

// BackUpEtcd copies the server's data while it is stopped for a moment.
func (l *Lab) BackUpEtcd() error {
	if err := errors.Join(l.StopEtcd(), os.RemoveAll(l.backup()), os.CopyFS(l.backup(), os.DirFS(filepath.Join(l.Dir, "etcd")))); err != nil {
		return err
	}
	return l.Etcd()
}

func (l *Lab) backup() string { return filepath.Join(l.Dir, "etcd.backup") }

// RestoreEtcd makes the server start again with the copy that [Lab.BackUpEtcd] made.
func (l *Lab) RestoreEtcd() error {
	data := filepath.Join(l.Dir, "etcd")
	if err := errors.Join(l.StopEtcd(), os.RemoveAll(data), os.CopyFS(data, os.DirFS(l.backup()))); err != nil {
		return err
	}
	return l.Etcd()
}

// StopEtcd ends the server; its data stays.
func (l *Lab) StopEtcd() error { return l.server.End(unix.SIGKILL) }

// Eventually calls f until it returns nil, and returns its last error with what was waited for when that takes too long.
func Eventually(what string, f func() error) error { return Within(Patience, what, f) }

// Within is [Eventually] with another patience.
func Within(patience time.Duration, what string, f func() error) error {
	deadline := time.Now().Add(patience)
	const step = 20 * time.Millisecond
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for: %s: %w", patience, what, err)
		}
		time.Sleep(step) //nolint:forbidigo // a wait for a condition with a deadline
	}
}
