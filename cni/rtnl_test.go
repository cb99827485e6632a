package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// onConn runs f with a socket in a namespace of its own.
func onConn(t *testing.T, f func(c *conn) error) {
	t.Helper()
	must(t, newSpace(t).Do(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.close()
		return f(c)
	}))
}

// TestEachStepHasItsOwnOutcome: they are one message, and the kernel goes on after a step that failed.
func TestEachStepHasItsOwnOutcome(t *testing.T) {
	onConn(t, func(c *conn) error {
		lo, err := c.find("lo", unix.IFLA_IFNAME)
		if err != nil {
			return err
		}
		add := func(text string) step {
			p := netip.MustParsePrefix(text)
			return step{"add " + text, addrRequest(lo.index, address{ip: p.Addr(), prefix: p})}
		}
		steps := func() []step {
			return []step{add("192.0.2.1/24"), add("192.0.2.1/24"), add("192.0.2.2/32"), add("192.0.2.2/32")}
		}
		errs := c.all(steps())
		for i, want := range []error{nil, unix.EEXIST, nil, unix.EEXIST} {
			if !errors.Is(errs[i], want) {
				t.Errorf("step %d: %v, want %v", i, errs[i], want)
			}
		}
		if err := c.do(steps()...); !errors.Is(err, unix.EEXIST) || !strings.HasPrefix(err.Error(), "add 192.0.2.1/24: ") {
			t.Errorf("the first error is %v", err)
		}
		if err := c.do(step{"set up", upped(unix.RTM_SETLINK, 1<<30)}); !errors.Is(err, unix.ENODEV) {
			t.Errorf("a link that is not there: %v", err)
		}
		if _, err := c.find("nobody", unix.IFLA_IFNAME); !errors.Is(err, errNoLink) || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("a link that is not there: %v", err)
		}
		return nil
	})
}

// TestTheKernelsOwnWordsAreInTheError: an errno alone says too little.
func TestTheKernelsOwnWordsAreInTheError(t *testing.T) {
	onConn(t, func(c *conn) error {
		_, dst, err := net.ParseCIDR("203.0.113.0/24")
		if err != nil {
			return err
		}
		far := routeRequest(1, &types.Route{Dst: *dst, GW: net.ParseIP("198.51.100.1")})
		if err := c.do(step{"add the route", far}); err == nil || !strings.Contains(err.Error(), "gateway") {
			t.Errorf("it says %v, and nothing of the gateway", err)
		}
		return nil
	})
}

// TestOnlyTheKernelIsHeard: whoever has rights in the pod can send to the plugin's socket there.
func TestOnlyTheKernelIsHeard(t *testing.T) {
	onConn(t, func(c *conn) error {
		if _, err := c.find("lo", unix.IFLA_IFNAME); err != nil {
			return err
		}
		own, err := unix.Getsockname(c.fd)
		if err != nil {
			return err
		}
		other, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(other)
		forged := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(forged, uint32(len(forged)))
		binary.NativeEndian.PutUint16(forged[4:], unix.RTM_NEWLINK)
		binary.NativeEndian.PutUint32(forged[8:], c.seq+1)
		if err := unix.Sendto(other, forged, 0, own); err != nil {
			return err
		}
		if l, err := c.find("lo", unix.IFLA_IFNAME); err != nil || l.name != "lo" {
			t.Errorf("a forged answer is believed: %+v, %v", l, err)
		}
		return nil
	})
}

// TestAnErrorThatComesLateIsNotTheNextRequests: one request may be given up when the socket overflows.
func TestAnErrorThatComesLateIsNotTheNextRequests(t *testing.T) {
	onConn(t, func(c *conn) error {
		c.seq++
		late := upped(unix.RTM_SETLINK, 1<<30)
		late.Seq = c.seq
		if err := unix.Sendto(c.fd, late.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		if l, err := c.find("lo", unix.IFLA_IFNAME); err != nil || l.name != "lo" {
			t.Errorf("%+v, %v", l, err)
		}
		return nil
	})
}
