package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/subnet"
)

// check compares what ADD made, as the final result lists it, with what is there (CNI spec, section "CHECK"). What plugins
// behind this one change lawfully is left alone: further routes and addresses, the pod's MAC if the result tells it, a
// smaller MTU in the pod, and routes moved to other tables.
func check(c conf, _ io.Writer) error {
	r := c.request
	pod, err := openPod(r.netns)
	if err != nil {
		return err
	}
	defer pod.close()
	if c.Delegate != nil {
		return c.delegateOther("CHECK")
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	node, err := readNode(c.NodeFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "see: systemctl status overlayd; overlayd status")
	}
	if err := c.ipam("CHECK"); err != nil {
		return err
	}
	e := expected{attachment: newAttachment(c.Name, r.container, r.ifname), conf: c, node: node, sandbox: pod.path}
	if err := e.read(result); err != nil {
		return err
	}
	if err := errors.Join(e.hostSide(), pod.do(e.podSide)); err != nil {
		return types.NewError(codeDiffers, fmt.Sprintf("%s: %v", e.alias, err), "")
	}
	return nil
}

// expected is what a result says of this attachment.
type expected struct {
	attachment
	conf    conf
	node    subnet.NodeFile
	sandbox string
	mac     string // of the pod's side
	hostMTU int    // 0: the result does not tell
	ips     []*current.IPConfig
	routes  []*types.Route
}

func (e *expected) read(r *current.Result) error {
	index := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == e.ifname && i.Sandbox != "" })
	if index < 0 {
		return invalid("prevResult: it has no interface %s in a sandbox", e.ifname)
	}
	e.mac = r.Interfaces[index].Mac
	host := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == e.link && i.Sandbox == "" })
	if host < 0 {
		return invalid("prevResult: it has no interface %s on the host", e.link)
	}
	e.hostMTU = r.Interfaces[host].Mtu
	for _, ip := range r.IPs {
		if ip.Interface != nil && *ip.Interface == index {
			e.ips = append(e.ips, ip)
		}
	}
	if len(e.ips) == 0 {
		return invalid("prevResult: %s has no address", e.ifname)
	}
	for _, route := range r.Routes {
		if e.made(route) {
			e.routes = append(e.routes, route)
		}
	}
	return nil
}

// made says whether the route is this plugin's: over a gateway of its own addresses, or one that the configuration names.
func (e *expected) made(route *types.Route) bool {
	return slices.ContainsFunc(e.ips, func(ip *current.IPConfig) bool { return ip.Gateway != nil && ip.Gateway.Equal(route.GW) }) ||
		slices.ContainsFunc(e.conf.Routes, func(r *types.Route) bool { return r.Dst.String() == route.Dst.String() && r.GW.Equal(route.GW) })
}

// hostSide says what is wrong on the host.
func (e *expected) hostSide() error {
	l, err := netlink.LinkByName(e.link)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing) || err == nil && (l.Type() != "veth" || l.Attrs().Name != e.link):
		return fmt.Errorf("host link %s is missing", e.link)
	case err != nil:
		return fmt.Errorf("look for %s: %w", e.link, err)
	}
	a := l.Attrs()
	var errs []error
	if a.Alias != e.alias {
		errs = append(errs, fmt.Errorf("host link %s has the alias %q", e.link, a.Alias))
	}
	if a.Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("host link %s is down", e.link))
	}
	name, err := e.conf.bridge(e.node)
	if err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(name)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("bridge %s: %w", name, err))
	case a.MasterIndex != bridge.Attrs().Index:
		errs = append(errs, fmt.Errorf("host link %s is no port of %s", e.link, name))
	case bridge.Attrs().Flags&net.FlagUp == 0:
		errs = append(errs, fmt.Errorf("bridge %s is down", name))
	}
	if want := e.wantedMTU(); a.MTU != want {
		errs = append(errs, fmt.Errorf("host link %s has MTU %d, not %d", e.link, a.MTU, want))
	}
	for _, ip := range e.ips {
		if addr, ok := addrOf(ip.Address.IP); !ok || !slices.Contains(a.AltNames, subnet.AltName(addr)) {
			errs = append(errs, fmt.Errorf("host link %s does not hold the address %s", e.link, ip.Address.IP))
		}
	}
	return errors.Join(errs...)
}

// wantedMTU is what the result tells, which no other plugin changes on the host's side; else what an ADD would use now.
func (e *expected) wantedMTU() int {
	if e.hostMTU != 0 {
		return e.hostMTU
	}
	return e.conf.mtu(e.node)
}

// podSide says what is wrong in the pod, from inside it.
func (e *expected) podSide() error {
	l, err := netlink.LinkByName(e.ifname)
	if err != nil {
		return fmt.Errorf("interface %s is missing: %w", e.ifname, err)
	}
	a := l.Attrs()
	var errs []error
	if a.Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("interface %s is down", e.ifname))
	}
	if e.mac != "" && a.HardwareAddr.String() != e.mac {
		errs = append(errs, fmt.Errorf("interface %s has MAC %s, not %s", e.ifname, a.HardwareAddr, e.mac))
	}
	if want := e.wantedMTU(); a.MTU > want {
		errs = append(errs, fmt.Errorf("interface %s has MTU %d, more than %d", e.ifname, a.MTU, want))
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", e.ifname, err)
	}
	for _, ip := range e.ips {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == ip.Address.String() }) {
			errs = append(errs, fmt.Errorf("interface %s does not have the address %s", e.ifname, &ip.Address))
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, want := range e.routes {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return sameRoute(r, want, a.Index) }) {
			errs = append(errs, fmt.Errorf("route %s via %s is missing", &want.Dst, want.GW))
		}
	}
	return errors.Join(errs...)
}

func sameRoute(r netlink.Route, want *types.Route, index int) bool {
	dst := want.Dst.String()
	if r.Dst == nil {
		ones, _ := want.Dst.Mask.Size()
		return ones == 0 && r.Gw.Equal(want.GW) && r.LinkIndex == index
	}
	return r.Dst.String() == dst && r.Gw.Equal(want.GW) && r.LinkIndex == index
}
