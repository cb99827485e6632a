package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// configure sets up the pod's side, from inside the pod, and returns its index.
func configure(h *netlink.Handle, ifname string, addrs []address, routes []*types.Route, mac subnet.MAC) (int, error) {
	l, err := h.LinkByName(ifname)
	if err != nil {
		return 0, err
	}
	for _, a := range addrs {
		if !a.ip.Is4() {
			if err := prepareIPv6(ifname); err != nil {
				return 0, err
			}
		}
	}
	if err := h.LinkSetHardwareAddr(l, mac[:]); err != nil {
		return 0, fmt.Errorf("set MAC %s: %w", mac, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return 0, fmt.Errorf("set up: %w", err)
	}
	for _, a := range addrs {
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: a.ip.AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.ip.BitLen())}}
		if !a.ip.Is4() {
			ip.Flags = unix.IFA_F_NODAD // the address is ours by claim, and asking takes a second
		}
		if err := h.AddrAdd(l, ip); err != nil {
			return 0, fmt.Errorf("add %s: %w", ip.IPNet, err)
		}
	}
	for _, r := range routes {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.GW == nil {
			route.Scope = netlink.SCOPE_LINK
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := h.RouteAdd(route); err != nil {
			return 0, fmt.Errorf("route %s via %s: %w", &r.Dst, r.GW, err)
		}
	}
	return l.Attrs().Index, nil
}

// prepareIPv6 undoes what runtimes do to keep IPv6 away, and keeps router advertisements of other pods away.
func prepareIPv6(ifname string) error {
	for knob, value := range map[string]string{"disable_ipv6": "0", "accept_ra": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+ifname+"/"+knob, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

const (
	carrierPatience = time.Second
	carrierStep     = 200 * time.Microsecond
)

// awaitCarrier waits until the kernel has seen the link's carrier (net/core/link_watch.c does that in its own time). What
// is sent over a device before that is dropped, and the next attempt to resolve an address comes a second later.
func awaitCarrier(l netlink.Link) error {
	deadline := time.Now().Add(carrierPatience)
	for {
		now, err := netlink.LinkByIndex(l.Attrs().Index)
		if err != nil {
			return fmt.Errorf("look at %s: %w", l.Attrs().Name, err)
		}
		if s := now.Attrs().OperState; s == netlink.OperUp || time.Now().After(deadline) {
			return nil // late, it still comes up by itself
		}
		time.Sleep(carrierStep) //nolint:forbidigo // a wait for the kernel with a deadline, in a program without a context
	}
}
