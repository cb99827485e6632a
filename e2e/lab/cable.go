package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Router adds a machine to the underlay that forwards what is not for itself.
func (l *Lab) Router(name, addr string) (*Host, error) {
	h, err := l.Host(name, addr)
	if err != nil {
		return nil, err
	}
	return h, h.Forward()
}

// Forward makes the machine a router, which keeps to itself that there may be a shorter way.
func (h *Host) Forward() error {
	return h.knobs("net/ipv4/ip_forward=1", "net/ipv4/conf/all/send_redirects=0", "net/ipv4/conf/eth0/send_redirects=0", "net/ipv6/conf/all/forwarding=1")
}

// knobs sets sysctls, each as name=value.
func (n *Netns) knobs(all ...string) error {
	return n.Do(func() error {
		var errs []error
		for _, knob := range all {
			name, value, _ := strings.Cut(knob, "=")
			errs = append(errs, os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0))
		}
		return errors.Join(errs...)
	})
}

// Behind adds a machine that is not on the switch: its eth0 is cabled to a router, by which it and etcd find each other.
// The router's device has the machine's name, and the first address of its prefix. Routers further up the admin tells the way.
func (l *Lab) Behind(router *Host, name string, addr netip.Prefix) (*Host, error) {
	h, err := l.unplugged(name, addr.Addr().String())
	if err != nil {
		return nil, err
	}
	h.router = router
	first := netip.PrefixFrom(addr.Masked().Addr().Next(), addr.Bits())
	if err := Cable(router.Netns, name, h.Netns, "eth0"); err != nil {
		return nil, err
	}
	gateway := first.Addr().AsSlice()
	for _, step := range []struct {
		on *Netns
		do func() error
	}{
		{router.Netns, func() error { return address(name, first) }},
		{h.Netns, func() error { return address("eth0", addr) }},
		{h.Netns, func() error { return netlink.RouteAdd(&netlink.Route{Gw: gateway}) }},
		{l.etcd, func() error {
			entry := router // the one on the switch
			for entry.router != nil {
				entry = entry.router
			}
			via := net.ParseIP(entry.Addr)
			return netlink.RouteAdd(&netlink.Route{Dst: prefix(addr.Masked()), Gw: via})
		}},
	} {
		if err := step.on.Do(step.do); err != nil {
			return nil, fmt.Errorf("put %s behind %s: %w", name, router.ID, err)
		}
	}
	return h, nil
}

// Cable connects two namespaces: a device in each, both up.
func Cable(a *Netns, deviceA string, b *Netns, deviceB string) error {
	file, err := os.Open(b.Path())
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only its number is used
	err = a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Flags = deviceA, net.FlagUp
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: deviceB, PeerNamespace: netlink.NsFd(file.Fd())})
	})
	if err != nil {
		return fmt.Errorf("cable from %s of %s to %s of %s: %w", deviceA, a.Name, deviceB, b.Name, err)
	}
	return b.Do(func() error {
		link, err := netlink.LinkByName(deviceB)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// address gives a device of the current namespace an address, usable at once.
func address(device string, p netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: prefix(p), Flags: unix.IFA_F_NODAD})
}

func prefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
