package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// look reads what the machine is.
func look(t *testing.T, k backend.Kernel) backend.Host {
	t.Helper()
	h, _, err := k.Read()
	must(t, err)
	return h
}

// TestRoutesOfTheUplink: which neighbours are behind a router after all, and which MTU the way has.
func TestRoutesOfTheUplink(t *testing.T) {
	k := open(t)
	ip(t, "addr add 2001:db8:7::7/64 dev eth0 nodad")
	pass(t, k, backendtest.Network(t)) // with routes of ours, which say nothing about the uplink
	for _, c := range []struct {
		route  string
		routed string
		mtu    int
	}{
		{"192.0.2.128/25 via 192.0.2.1", "192.0.2.128/25", 1500},
		{"192.0.2.8/32 via 192.0.2.1", "192.0.2.8/32", 1500},
		{"192.0.2.8/32 nexthop via 192.0.2.1 dev eth0 nexthop via 192.0.2.2 dev eth0", "192.0.2.8/32", 1500},
		{"2001:db8:7::8/128 via 2001:db8:7::1", "2001:db8:7::8/128", 1500},
		{"192.0.2.8/32 via inet6 2001:db8:7::1 dev eth0", "192.0.2.8/32", 1500},
		{"192.0.2.128/25 dev eth0", "", 1500},
		{"192.0.2.128/25 dev eth0 mtu 1400", "", 1400},
		{"203.0.113.0/24 via 192.0.2.1", "", 1500},
		{"203.0.113.0/24 via 192.0.2.1 mtu 1300", "", 1500},
		{"default via 192.0.2.1 mtu 1380", "", 1380},
		{"default via 192.0.2.1 mtu 9000", "", 1500},
		{"2001:db8:7:0:8000::/65 dev eth0 mtu 1400", "", 1500}, // outer packets are IPv4
		{"192.0.2.8/32 via 192.0.2.1 table 100", "", 1500},
		{"192.0.2.8/32 via 192.0.2.1 proto 142", "", 1500},
	} {
		t.Run(c.route, func(t *testing.T) {
			ip(t, "route add "+c.route)
			defer ip(t, "route del "+c.route)
			u := look(t, k).Uplink
			var want []netip.Prefix
			if c.routed != "" {
				want = []netip.Prefix{netip.MustParsePrefix(c.routed)}
			}
			if !slices.Equal(u.Routed, want) || u.MTU != c.mtu {
				t.Errorf("routed %v, MTU %d, want %v and %d", u.Routed, u.MTU, want, c.mtu)
			}
		})
	}
}

// behind moves the other end of the uplink's cable to a namespace of its own, with the address 192.0.2.1.
func behind(t *testing.T) *lab.Netns {
	t.Helper()
	router, err := lab.NewNetns("router")
	must(t, err)
	t.Cleanup(func() { must(t, router.Remove()) })
	must(t, router.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0) }))
	ip(t, "link set cable netns router")
	t.Cleanup(func() { ip(t, "-n router link set cable netns 1") }) // the lab's first process; else eth0 goes with it
	for _, args := range []string{"addr add 192.0.2.1/24 dev cable", "addr add fe80::1/64 dev cable nodad", "link set cable up"} {
		ip(t, "-n router "+args)
	}
	return router
}

// TestALearnedPathMTUIsSeen: a router on the way says that a packet is too big.
func TestALearnedPathMTUIsSeen(t *testing.T) {
	plugIn(t)
	router := behind(t)
	ip(t, "-n router link add narrow type veth peer name far")
	ip(t, "-n router link set far up")
	ip(t, "-n router link set narrow mtu 1300 up")
	ip(t, "-n router route add 203.0.113.0/24 dev narrow")
	ip(t, "route add 203.0.113.0/24 via 192.0.2.1")
	must(t, router.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	k := openWith(t, with(nil))
	if got := look(t, k).PathMTU; len(got) > 0 {
		t.Fatalf("learned before: %v", got)
	}
	c, err := net.Dial("udp4", "203.0.113.9:9")
	must(t, err)
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}))
	must(t, err)
	want := backend.PathMTU{To: netip.MustParseAddr("203.0.113.9"), MTU: 1300}
	must(t, lab.Eventually("the path's MTU is learned", func() error {
		_, _ = c.Write(make([]byte, 1400)) // an error once it is learned
		if got := look(t, k).PathMTU; !slices.Equal(got, []backend.PathMTU{want}) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	}))
}

// advertise sends a router advertisement (RFC 4861 section 4.2) on the router's end of the cable.
func advertise() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	cable, err := net.InterfaceByName("cable")
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	const hops, lifetime = 255, 30
	err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hops)
	message := []byte{134, 0, 0, 0, 64, 0, 0, lifetime, 0, 0, 0, 0, 0, 0, 0, 0}
	to := &unix.SockaddrInet6{ZoneId: uint32(cable.Index), Addr: netip.MustParseAddr("ff02::1").As16()}
	return errors.Join(err, unix.Sendto(fd, message, 0, to), unix.Close(fd))
}

// TestTheHostKeepsItsLearnedDefaultRoute when it begins to forward IPv6: the kernel drops what it learned from router
// advertisements on links that are not told before to take them nevertheless.
func TestTheHostKeepsItsLearnedDefaultRoute(t *testing.T) {
	for _, conf := range []string{"all", "default"} {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/forwarding", []byte("0"), 0))
	}
	plugIn(t)
	router := behind(t)
	k := openWith(t, with(nil))
	learned := func() error {
		if text := ip(t, "-6 route show default proto ra"); text == "" {
			return errors.New("no default route")
		}
		return nil
	}
	must(t, lab.Eventually("a default route is learned", func() error { return errors.Join(router.Do(advertise), learned()) }))
	pass(t, k, backendtest.Network(t))
	must(t, learned())
	if got := look(t, k).Uplink.AcceptRA; got != "2" {
		t.Errorf("accept_ra is %q", got)
	}
}

// TestPodsAreSeenThroughTheirNamespace, which nobody enters.
func TestPodsAreSeenThroughTheirNamespace(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	link := attach(t, "pod7", 1400, "10.5.34.8", "fd00:5:0:22::8")
	check := func(mac string, mtu int) {
		t.Helper()
		pods := look(t, k).Pods
		want, err := subnet.ParseMAC(mac)
		must(t, err)
		if len(pods) != 1 || pods[0].Link != link || pods[0].MAC != want || pods[0].MTU != mtu {
			t.Errorf("pods are %+v, want one with MAC %s and MTU %d", pods, mac, mtu)
		}
	}
	check(podMAC, 1400)
	ip(t, "-n pod7 link set eth0 mtu 1280 address 02:00:00:00:00:09")
	check("02:00:00:00:00:09", 1280)
	var changes []string
	for _, c := range pass(t, k, network) {
		changes = append(changes, c.String())
	}
	for _, want := range []string{"+ element bridge overlayd ports { vethpod7 }", "+ element bridge overlayd macs { vethpod7 . 02:00:00:00:00:09 }"} {
		if !slices.Contains(changes, want) {
			t.Errorf("made are %q, want %s", changes, want)
		}
	}
	ip(t, "link set "+link+" netns pod7") // gone from here
	if pods := look(t, k).Pods; len(pods) > 0 {
		t.Errorf("pods are %+v, want none", pods)
	}
	ip(t, "-n pod7 link del eth0")
}

// TestAPodWithBothEndsHereIsNotSeen: nothing is known of its MAC but what it was given.
func TestAPodWithBothEndsHereIsNotSeen(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	ip(t, "link add veth9 type veth peer name peer9")
	t.Cleanup(func() { ip(t, "link del veth9") })
	ip(t, "link property add dev veth9 altname 10.5.34.9")
	ip(t, "link set veth9 master ovl0 alias overlay/pod9/eth0 up")
	if pods := look(t, k).Pods; len(pods) != 1 || pods[0].MAC != (subnet.MAC{}) || pods[0].MTU != 0 {
		t.Errorf("pods are %+v, want one whose end is not seen", pods)
	}
}
