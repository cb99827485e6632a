package kernel_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Run(m.Run)) }

// open returns the machine that the suite wants: this process's network namespace with an uplink in it.
func open(t *testing.T) backend.Kernel {
	plugIn(t)
	k, err := kernel.Open(kernel.Options{Node: "h1", VXLAN: "overlay.1", Bridge: "ovl0", Choice: backend.Choice{Ifaces: []string{"eth0"}},
		Masquerade: true, AntiSpoof: true, Exclude: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}})
	must(t, err)
	t.Cleanup(func() {
		_, err := backend.Remove(k)
		must(t, err)
		must(t, k.Close())
	})
	return k
}

// plugIn makes the uplink for the time of a test.
func plugIn(t testing.TB) {
	lab.Need(t)
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "cable"}
	must(t, netlink.LinkAdd(uplink))
	t.Cleanup(func() { must(t, netlink.LinkDel(uplink)) })
	cable, err := netlink.LinkByName("cable")
	must(t, errors.Join(err, netlink.LinkSetUp(cable), netlink.LinkSetUp(uplink)))
	must(t, netlink.AddrAdd(uplink, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 7), Mask: net.CIDRMask(24, 32)}}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestKernel(t *testing.T) { backendtest.Suite(t, open) }
