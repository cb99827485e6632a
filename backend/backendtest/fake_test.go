package backendtest

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
)

// TestFake holds the model to what the real kernel is held to.
func TestFake(t *testing.T) {
	Suite(t, func(*testing.T) backend.Kernel {
		return NewFake(backend.Host{
			Node: "h1", VXLAN: "overlay.1", Bridge: "ovl0", IPv6: true,
			Uplink: backend.Uplink{Name: "eth0", Addr: netip.MustParseAddr("192.0.2.7"), MTU: 1500},
			Guard:  backend.GuardFull, Masquerade: true, AntiSpoof: true,
		})
	})
}
