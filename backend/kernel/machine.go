package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// machine is one reading of links and addresses, from which the other facts follow.
type machine struct {
	options Options
	links   []netlink.Link
	addrs   []netlink.Addr
	names   map[int]string // link index -> name
	rows    *conn
}

// ours says whether the device of that name is one of ours.
func (m machine) ours(name string) bool {
	return name != "" && (name == m.options.VXLAN || name == m.options.Bridge)
}

// vxlanName is the name of our VXLAN device: the one given, or without one that of a device named as ours are by default.
func vxlanName(given string, links []netlink.Link) string {
	if given != "" {
		return given
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Name == DefaultVXLANName(uint32(v.VxlanId)) {
			return v.Name
		}
	}
	return ""
}

// DefaultVXLANName is the name of the VXLAN device unless the admin gives another.
func DefaultVXLANName(vni uint32) string { return fmt.Sprintf("overlay.%d", vni) }

// devices adds our devices and their addresses. A device that has our name and is of another kind is somebody else's: it
// is left out, so that making ours fails and says so.
func (m machine) devices(s backend.State) {
	own := map[int]string{}
	for _, l := range m.links {
		a := l.Attrs()
		switch l := l.(type) {
		case *netlink.Vxlan:
			if a.Name == m.options.VXLAN {
				own[a.Index] = a.Name
				s.Add(m.vxlan(l))
			}
		case *netlink.Bridge:
			if a.Name == m.options.Bridge {
				own[a.Index] = a.Name
				s.Add(backend.Bridge{Name: a.Name, MAC: macOf(a.HardwareAddr), MTU: a.MTU, Up: isUp(a)})
			}
		}
	}
	for _, a := range m.addrs {
		if p, ok := prefixOf(a.IPNet); ok && own[a.LinkIndex] != "" && !p.Addr().IsLinkLocalUnicast() {
			s.Add(backend.Addr{Dev: own[a.LinkIndex], Prefix: p})
		}
	}
}

func (m machine) vxlan(l *netlink.Vxlan) backend.VXLAN {
	a := l.Attrs()
	local, _ := netip.AddrFromSlice(l.SrcAddr)
	return backend.VXLAN{
		Name: a.Name, VNI: uint32(l.VxlanId), Local: local.Unmap(), Dev: m.names[l.VtepDevIndex], Port: uint16(l.Port),
		MAC: macOf(a.HardwareAddr), MTU: a.MTU, Learning: l.Learning, Up: isUp(a),
	}
}

// pods lists what the CNI plugin attached: links whose alternative names are addresses, on our bridge or cut off from it.
func (m machine) pods(s backend.State) ([]backend.Pod, error) {
	var pods []backend.Pod
	hairpins, err := m.hairpins()
	if err != nil {
		return nil, err
	}
	for _, l := range m.links {
		a := l.Attrs()
		master := m.names[a.MasterIndex]
		if m.options.Bridge == "" || l.Type() != "veth" || a.MasterIndex != 0 && master != m.options.Bridge {
			continue
		}
		pod := backend.Pod{Link: a.Name, Alias: a.Alias}
		pod.MAC, pod.MTU = m.otherEnd(a)
		for _, name := range a.AltNames {
			if addr, ok := subnet.ParseAltName(name); ok {
				pod.Addrs = append(pod.Addrs, addr)
			}
		}
		if len(pod.Addrs) == 0 {
			continue
		}
		pods = append(pods, pod)
		if a.MasterIndex != 0 && hairpins[a.Index] { // one without is not as it should be: plugging it in again mends it
			s.Add(backend.Port{Link: a.Name, Bridge: master})
		}
	}
	return pods, nil
}

// hairpins lists the ports of bridges that send a frame back to where it came from.
func (m machine) hairpins() (map[int]bool, error) {
	all := map[int]bool{}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	err := m.rows.dump(req, func(body []byte) {
		if len(body) < unix.SizeofIfInfomsg {
			return
		}
		index := int(int32(binary.NativeEndian.Uint32(body[4:])))
		for kind, value := range attributes(body[unix.SizeofIfInfomsg:]) {
			if kind != unix.IFLA_PROTINFO {
				continue
			}
			for kind, value := range attributes(value) {
				if kind == nl.IFLA_BRPORT_MODE && len(value) > 0 && value[0] != 0 {
					all[index] = true
				}
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list ports of bridges: %w", err)
	}
	return all, nil
}

// otherEnd looks at the pod's end of a link without entering its namespace; zero when it cannot be seen.
func (m machine) otherEnd(a *netlink.LinkAttrs) (mac subnet.MAC, mtu int) {
	if a.NetNsID < 0 || a.ParentIndex == 0 {
		return mac, 0
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(a.ParentIndex)
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0) // never RTM_SETLINK: that would move a link of this host
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(a.NetNsID))))
	err := m.rows.get(req, func(body []byte) {
		if len(body) < unix.SizeofIfInfomsg {
			return
		}
		for kind, value := range attributes(body[unix.SizeofIfInfomsg:]) {
			switch kind {
			case unix.IFLA_ADDRESS:
				mac = macOf(value)
			case unix.IFLA_MTU:
				mtu = int(uint32Of(value))
			}
		}
	})
	if err != nil {
		return subnet.MAC{}, 0 // it goes at this moment
	}
	return mac, mtu
}

// connected lists the prefixes of devices that are not ours.
func (m machine) connected() []netip.Prefix {
	var all []netip.Prefix
	for _, a := range m.addrs {
		if p, ok := prefixOf(a.IPNet); ok && !m.ours(m.names[a.LinkIndex]) && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Masked())
		}
	}
	return all
}

// ifaces lists the devices that could be the uplink: not ours, not loopback, not a port of a bridge, not a pod's link.
func (m machine) ifaces() []backend.Iface {
	var all []backend.Iface
	for _, l := range m.links {
		a := l.Attrs()
		if m.ours(a.Name) || a.Flags&net.FlagLoopback != 0 || a.MasterIndex != 0 {
			continue
		}
		i := backend.Iface{Name: a.Name, Up: isUp(a), MTU: a.MTU}
		for _, addr := range m.addrs {
			if p, ok := prefixOf(addr.IPNet); ok && addr.LinkIndex == a.Index && p.Addr().IsGlobalUnicast() {
				i.Addrs = append(i.Addrs, p)
			}
		}
		all = append(all, i)
	}
	return all
}

// Addresses that stand for "anywhere": 6to4's (RFC 7526 withdrew it), so nobody routes them specially. Nothing is sent.
var anywhere = []net.IP{net.IPv4(192, 88, 99, 1), net.ParseIP("2002::1")}

// families are theirs.
var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// uplink finds the device for the outer packets, and the default gateways.
func (k *Kernel) uplink(m machine) (backend.Uplink, []netip.Addr, error) {
	ifaces := m.ifaces()
	mark := func(index int, set func(*backend.Iface)) {
		for i := range ifaces {
			if ifaces[i].Name == m.names[index] {
				set(&ifaces[i])
			}
		}
	}
	var gateways []netip.Addr
	found := false // IPv4's default route decides, IPv6's only without one
	for i, ip := range anywhere {
		for _, hop := range k.defaults(ip, families[i]) {
			if gw, ok := netip.AddrFromSlice(hop.Gw); ok {
				gateways = append(gateways, gw.Unmap())
			}
			if !found {
				mark(hop.LinkIndex, func(i *backend.Iface) { i.Default = true })
			}
		}
		found = found || slices.ContainsFunc(ifaces, func(i backend.Iface) bool { return i.Default })
	}
	if c := k.options.Choice.CanReach; c.IsValid() {
		for _, r := range k.lookup(c.AsSlice(), false) {
			if src, ok := netip.AddrFromSlice(r.Src); ok {
				mark(r.LinkIndex, func(i *backend.Iface) { i.Reaches = src.Unmap() })
			}
		}
	}
	u, err := k.options.Choice.Uplink(ifaces)
	return u, gateways, err
}

// defaults returns the nexthops of the best default route: what matches an address that nobody routes specially, or else,
// where a VPN has covered everything with two halves, what the table says.
func (k *Kernel) defaults(ip net.IP, family int) []*netlink.NexthopInfo {
	routes := slices.DeleteFunc(k.lookup(ip, true), func(r netlink.Route) bool {
		ones, _ := r.Dst.Mask.Size()
		return ones != 0
	})
	if len(routes) == 0 {
		routes, _ = k.links.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	}
	if len(routes) == 0 {
		return nil
	}
	best := routes[0]
	if len(best.MultiPath) > 0 {
		return best.MultiPath
	}
	return []*netlink.NexthopInfo{{LinkIndex: best.LinkIndex, Gw: best.Gw}}
}

// lookup asks the kernel for the way to ip; with match for the route that matches instead. No way is no route.
func (k *Kernel) lookup(ip net.IP, match bool) []netlink.Route {
	routes, err := k.links.RouteGetWithOptions(ip, &netlink.RouteGetOptions{FIBMatch: match})
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool { return match && r.Dst == nil })
}

const sysctlDir = "/proc/sys"

func hasIPv6() bool {
	_, err := os.Stat(filepath.Join(sysctlDir, "net/ipv6"))
	return err == nil
}

// readSysctls adds the knobs that a plan may want; one that does not exist is left out. uplink may be empty.
func (m machine) readSysctls(uplink string, s backend.State) {
	for _, name := range knobNames(m.options, uplink) {
		if value := sysctl(name); value != "" {
			s.Add(backend.Sysctl{Name: name, Value: value})
		}
	}
}

// sysctl returns the value of a knob, "" when there is none.
func sysctl(name string) string {
	value, err := os.ReadFile(filepath.Join(sysctlDir, name))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(value))
}

func writeSysctl(s backend.Sysctl) error {
	err := os.WriteFile(filepath.Join(sysctlDir, s.Name), []byte(s.Value), 0)
	if errors.Is(err, unix.EROFS) {
		return errors.New("/proc/sys is read-only here: set " + s.Name + " = " + s.Value + " by other means (sysctl.d)")
	}
	return err
}

func isUp(a *netlink.LinkAttrs) bool { return a.Flags&net.FlagUp != 0 }

// macOf returns the zero MAC for an address of another length.
func macOf(hw net.HardwareAddr) subnet.MAC {
	if len(hw) != len(subnet.MAC{}) {
		return subnet.MAC{}
	}
	return subnet.MAC(hw)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
