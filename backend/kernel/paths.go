package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// readPaths completes what is known of the uplink: which neighbours are behind a router after all, a smaller MTU that a
// route has, and the path MTUs that the kernel has learned (route exceptions, as "ip route show cache" prints them).
func (k *Kernel) readPaths(m machine, h *backend.Host) error {
	index := 0
	for i, name := range m.names {
		if name == h.Uplink.Name {
			index = i
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		routes.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
		routes.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		err := k.rows.dump(routes, func(body []byte) {
			if p, ok := pathOf(body); ok && p.protocol != backend.Protocol && p.table == unix.RT_TABLE_MAIN {
				p.onUplink(&h.Uplink)
			}
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("list routes of the uplink: %w", err)
		}
		cache := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		cache.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Flags: unix.RTM_F_CLONED}})
		err = k.rows.dump(cache, func(body []byte) {
			if p, ok := pathOf(body); ok && p.mtu > 0 && p.cloned && p.dst.IsSingleIP() {
				h.PathMTU = append(h.PathMTU, backend.PathMTU{To: p.dst.Addr(), MTU: p.mtu})
			}
		})
		if err != nil && !gone(err) {
			return fmt.Errorf("list learned path MTUs: %w", err)
		}
	}
	slices.SortFunc(h.PathMTU, func(a, b backend.PathMTU) int { return a.To.Compare(b.To) })
	return nil
}

// path is a route as far as the uplink's concerns go.
type path struct {
	dst      netip.Prefix
	gateway  bool
	mtu      int
	protocol uint8
	table    uint32
	cloned   bool
}

func (p path) onUplink(u *backend.Uplink) {
	onLink := slices.ContainsFunc(u.OnLink, func(l netip.Prefix) bool { return l.Overlaps(p.dst) && p.dst.Bits() >= l.Bits() })
	if p.gateway && onLink {
		u.Routed = append(u.Routed, p.dst)
	}
	if p.mtu > 0 && p.dst.Addr().Is4() == u.Addr.Is4() && (p.dst.Bits() == 0 || onLink) {
		u.MTU = min(u.MTU, p.mtu)
	}
}

func pathOf(body []byte) (path, bool) {
	if len(body) < unix.SizeofRtMsg {
		return path{}, false
	}
	family, bits := body[0], int(body[1])
	p := path{protocol: body[5], table: uint32(body[4]), cloned: binary.NativeEndian.Uint32(body[8:])&unix.RTM_F_CLONED != 0}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for kind, value := range attributes(body[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			p.gateway = true
		case unix.RTA_TABLE:
			p.table = uint32Of(value)
		case unix.RTA_METRICS:
			for kind, value := range attributes(value) {
				if kind == unix.RTAX_MTU {
					p.mtu = int(uint32Of(value))
				}
			}
		}
	}
	p.dst = netip.PrefixFrom(dst, bits)
	return p, dst.IsValid()
}
