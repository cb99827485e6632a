package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

// nexthopMessage is struct nhmsg (linux/nexthop.h), which the netlink package does not know.
type nexthopMessage struct {
	family, protocol uint8
	flags            uint32
}

const sizeofNexthopMessage = 8

const rtaNHID = 30 // RTA_NH_ID (linux/rtnetlink.h): a route's nexthop object

// Len implements [nl.NetlinkRequestData].
func (nexthopMessage) Len() int { return sizeofNexthopMessage }

// Serialize implements [nl.NetlinkRequestData].
func (m nexthopMessage) Serialize() []byte {
	b := make([]byte, sizeofNexthopMessage)
	b[0], b[2] = m.family, m.protocol
	binary.NativeEndian.PutUint32(b[4:], m.flags)
	return b
}

// familyOf returns the number of the address family.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// readRows adds the rows of which there is one for each peer.
func (k *Kernel) readRows(m machine, s backend.State) error {
	var vxlan int
	for _, l := range m.links {
		if _, ok := l.(*netlink.Vxlan); ok && l.Attrs().Name == m.options.VXLAN {
			vxlan = l.Attrs().Index
		}
	}
	if vxlan != 0 {
		for _, family := range []uint8{unix.AF_UNSPEC, unix.AF_BRIDGE} {
			if err := k.readNeighbours(m, family, vxlan, s); err != nil {
				return err
			}
		}
	}
	if err := k.readNexthops(m, s); err != nil {
		return err
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := k.readRoutes(m, family, s); err != nil {
			return err
		}
	}
	return nil
}

// readNeighbours adds the neighbours of the VXLAN device, or with AF_BRIDGE its FDB.
func (k *Kernel) readNeighbours(m machine, family uint8, vxlan int, s backend.State) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: family})
	req.AddData(nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(vxlan))))
	err := k.rows.dump(req, func(body []byte) {
		if row := neighbour(body, vxlan, m.options.VXLAN); row != nil {
			s.Add(row)
		}
	})
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", m.options.VXLAN, err)
	}
	return nil
}

// neighbour reads one neighbour or FDB entry; nil when it is none of ours.
func neighbour(body []byte, vxlan int, dev string) backend.Entry {
	if len(body) < unix.SizeofNdMsg {
		return nil
	}
	index := int(int32(binary.NativeEndian.Uint32(body[4:])))
	state := binary.NativeEndian.Uint16(body[8:])
	fdb := body[0] == unix.AF_BRIDGE
	if index != vxlan || state&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 || fdb && body[10]&netlink.NTF_SELF == 0 {
		return nil // another device's; or one that comes and goes; or of a bridge that the device was put on
	}
	var dst netip.Addr
	var mac subnet.MAC
	var other bool
	for kind, value := range attributes(body[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			mac = macOf(value)
		case unix.NDA_PORT, unix.NDA_VNI:
			other = true
		}
	}
	if other {
		dst = netip.Addr{} // to another port or VNI: never as it should be
	}
	if fdb {
		return backend.FDB{Dev: dev, MAC: mac, Dst: dst}
	}
	if state&unix.NUD_NOARP != 0 && (dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		return nil // the kernel's own, made when it sends there (MLD reports): arp_constructor, ndisc_constructor
	}
	return backend.Neigh{Dev: dev, IP: dst, MAC: mac}
}

func (k *Kernel) readNexthops(m machine, s backend.State) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, 0)
	req.AddData(nexthopMessage{})
	err := k.rows.dump(req, func(body []byte) {
		if len(body) < sizeofNexthopMessage || body[2] != backend.Protocol {
			return
		}
		var n backend.Nexthop
		for kind, value := range attributes(body[sizeofNexthopMessage:]) {
			switch kind {
			case unix.NHA_ID:
				n.ID = uint32Of(value)
			case unix.NHA_OIF:
				n.Dev = m.names[int(uint32Of(value))]
			case unix.NHA_GATEWAY:
				n.Via, _ = netip.AddrFromSlice(value)
			}
		}
		s.Add(n)
	})
	if err != nil {
		return fmt.Errorf("list nexthops: %w", err)
	}
	return nil
}

func (k *Kernel) readRoutes(m machine, family uint8, s backend.State) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Protocol: backend.Protocol}})
	err := k.rows.dump(req, func(body []byte) {
		if r, ok := route(m, body); ok {
			s.Add(r)
		}
	})
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6 has none of its routes
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

// route reads a route of ours in the main table.
func route(m machine, body []byte) (backend.Route, bool) {
	var r backend.Route
	if len(body) < unix.SizeofRtMsg {
		return r, false
	}
	family, bits, table, protocol := body[0], body[1], uint32(body[4]), body[5]
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	unreachable := body[7] == unix.RTN_UNREACHABLE
	for kind, value := range attributes(body[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(value)
		case unix.RTA_OIF:
			r.Dev = m.names[int(uint32Of(value))]
		case unix.RTA_PRIORITY:
			r.Metric = uint32Of(value)
		case rtaNHID:
			r.NHID = uint32Of(value)
		case unix.RTA_TABLE:
			table = uint32Of(value)
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(bits))
	if unreachable {
		r.Dev, r.Via = "", netip.Addr{} // the kernel shows IPv6 ones on lo
	}
	return r, protocol == backend.Protocol && table == unix.RT_TABLE_MAIN
}

func uint32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// How a message is meant: make it and fail if there is one, or put it in the place of the old one.
const (
	makeNew = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// request returns the message that makes the change to one of the rows that are batched. index finds devices.
func request(c backend.Change, index func(string) (int, error)) (*nl.NetlinkRequest, error) {
	flags := makeNew
	if c.Old != nil {
		flags = replace
	}
	switch row := c.Row().(type) {
	case backend.FDB:
		return neighbourRequest(c, row.Dev, index, unix.AF_BRIDGE, netlink.NTF_SELF, row.Dst, row.MAC)
	case backend.Neigh:
		return neighbourRequest(c, row.Dev, index, familyOf(row.IP), 0, row.IP, row.MAC)
	case backend.Nexthop:
		return nexthopRequest(c, row, flags, index)
	case backend.Route:
		return routeRequest(c, row, flags, index)
	}
	return nil, fmt.Errorf("%s: %w", c.Row(), errors.ErrUnsupported)
}

func neighbourRequest(c backend.Change, dev string, index func(string) (int, error), family, flags uint8, dst netip.Addr, mac subnet.MAC) (*nl.NetlinkRequest, error) {
	i, err := index(dev)
	if err != nil {
		return nil, err
	}
	b := append(newAttrs(), family, 0, 0, 0) // struct ndmsg (linux/neighbour.h)
	b = binary.NativeEndian.AppendUint32(b, uint32(i))
	b = binary.NativeEndian.AppendUint16(b, unix.NUD_PERMANENT)
	b = append(b, flags, 0)
	if dst.IsValid() {
		b = b.add(unix.NDA_DST, dst.AsSlice())
	}
	b = b.add(unix.NDA_LLADDR, mac[:])
	if c.New == nil {
		return b.request(unix.RTM_DELNEIGH, 0), nil
	}
	// Whatever else says something about this address on our own device is in the way: replace it.
	return b.request(unix.RTM_NEWNEIGH, replace), nil
}

func nexthopRequest(c backend.Change, n backend.Nexthop, flags int, index func(string) (int, error)) (*nl.NetlinkRequest, error) {
	if c.New == nil {
		b := append(newAttrs(), nexthopMessage{}.Serialize()...)
		return b.host(unix.NHA_ID, n.ID).request(unix.RTM_DELNEXTHOP, 0), nil
	}
	i, err := index(n.Dev)
	if err != nil {
		return nil, err
	}
	b := append(newAttrs(), nexthopMessage{family: familyOf(n.Via), protocol: backend.Protocol, flags: unix.RTNH_F_ONLINK}.Serialize()...)
	b = b.host(unix.NHA_ID, n.ID).host(unix.NHA_OIF, uint32(i)).add(unix.NHA_GATEWAY, n.Via.AsSlice())
	return b.request(unix.RTM_NEWNEXTHOP, flags), nil
}

func routeRequest(c backend.Change, r backend.Route, flags int, index func(string) (int, error)) (*nl.NetlinkRequest, error) {
	kind := unix.RTM_NEWROUTE
	if c.New == nil {
		kind, flags = unix.RTM_DELROUTE, 0
	}
	m := unix.RtMsg{
		Family: familyOf(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: backend.Protocol, Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_UNIVERSE,
	}
	var to attrs
	switch {
	case c.New == nil: // destination, metric and protocol say enough
		m.Type, m.Scope = unix.RTN_UNSPEC, unix.RT_SCOPE_NOWHERE
	case !r.Via.IsValid():
		m.Type = unix.RTN_UNREACHABLE
	case r.NHID != 0:
		to = to.host(rtaNHID, r.NHID)
	default:
		i, err := index(r.Dev)
		if err != nil {
			return nil, err
		}
		m.Flags = unix.RTNH_F_ONLINK
		to = to.add(unix.RTA_GATEWAY, r.Via.AsSlice()).host(unix.RTA_OIF, uint32(i))
	}
	b := append(newAttrs(), (&nl.RtMsg{RtMsg: m}).Serialize()...).add(unix.RTA_DST, r.Dst.Addr().AsSlice())
	if r.Metric != 0 {
		b = b.host(unix.RTA_PRIORITY, r.Metric)
	}
	return append(b, to...).request(kind, flags), nil
}
