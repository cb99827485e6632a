package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// crowd is so many changes that we do not want to hear of each: who makes as many reads all tables again afterwards.
const crowd = 1000

// Apply implements [backend.Kernel]. Rows of which there are many go to the kernel in batches.
func (k *Kernel) Apply(changes []backend.Change) []error {
	if len(changes) >= crowd {
		defer k.options.Ear.shut()()
	}
	errs := make([]error, len(changes))
	for i := 0; i < len(changes); {
		if n := filters(changes[i:]); n > 0 {
			copy(errs[i:], k.filter(changes[i:i+n]))
			i += n
			continue
		}
		n := batchable(changes[i:])
		if n == 0 {
			errs[i] = k.single(changes[i])
			i++
			continue
		}
		copy(errs[i:], k.many(changes[i:i+n]))
		i += n
	}
	for i, c := range changes {
		errs[i] = k.explain(c, errs[i])
	}
	return errs
}

// batchable counts the changes at the front that can go in one batch.
func batchable(changes []backend.Change) int {
	for i, c := range changes {
		switch c.Row().(type) {
		case backend.FDB, backend.Neigh, backend.Nexthop, backend.Route:
		default:
			return i
		}
	}
	return len(changes)
}

// filters counts the changes at the front that are nf_tables'.
func filters(changes []backend.Change) int {
	for i, c := range changes {
		switch c.Row().(type) {
		case backend.Table, backend.Member, backend.Pair, backend.PodAddr, backend.PodMAC, backend.PodPort, backend.Stray, backend.Accept:
		default:
			return i
		}
	}
	return len(changes)
}

func (k *Kernel) many(changes []backend.Change) []error {
	known := map[string]int{}
	index := func(name string) (int, error) {
		if i, ok := known[name]; ok {
			return i, nil
		}
		l, err := k.link(name)
		if err != nil {
			return 0, err
		}
		known[name] = l.Attrs().Index
		return known[name], nil
	}
	errs := make([]error, 0, len(changes))
	without := map[uint32]bool{} // nexthop objects that are not there or not ours
	for first := 0; first < len(changes); first = len(errs) {
		part := changes[first : first+untilRoutes(changes[first:])]
		reqs := make([]*nl.NetlinkRequest, len(part))
		unmade := make([]error, len(part))
		for i, c := range part {
			if r, ok := c.New.(backend.Route); ok && without[r.NHID] {
				unmade[i] = errNoNexthop
				continue
			}
			reqs[i], unmade[i] = request(c, index)
		}
		for i, err := range k.rows.batch(reqs) {
			if err == nil {
				err = unmade[i]
			}
			if n, ok := part[i].New.(backend.Nexthop); ok && err != nil {
				without[n.ID] = true
			}
			errs = append(errs, err)
		}
	}
	return errs
}

var errNoNexthop = errors.New("its nexthop object could not be made: a route by a stranger's would send packets there")

// untilRoutes counts the changes at the front of one kind: nexthops and what is before them, or routes; at most a batch.
// Routes wait for the outcome of nexthops.
func untilRoutes(changes []backend.Change) int {
	_, routes := changes[0].New.(backend.Route)
	for i, c := range changes {
		if _, ok := c.New.(backend.Route); ok != routes || i == batchSize {
			return i
		}
	}
	return len(changes)
}

// explain drops the error of removing what is gone, and says of the others what the admin can do.
func (k *Kernel) explain(c backend.Change, err error) error {
	switch {
	case err == nil:
		return nil
	case c.New == nil && gone(err):
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: overlayd needs CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EEXIST):
		what := "something that is not overlayd's"
		if r, ok := c.New.(backend.Route); ok {
			what = k.inPlaceOf(r)
		}
		return fmt.Errorf("%w: %s has its place: remove that, or give it another metric", err, what)
	}
	return err
}

// inPlaceOf names the route that keeps ours out.
func (k *Kernel) inPlaceOf(r backend.Route) string {
	dst := &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())}
	routes, err := k.links.RouteListFiltered(int(familyOf(r.Dst.Addr())), &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
	if err != nil {
		return "somebody else's route"
	}
	for _, other := range routes {
		if uint32(other.Priority) != r.Metric || other.Protocol == backend.Protocol {
			continue
		}
		text := "route " + r.Dst.String()
		if other.Gw != nil {
			text += " via " + other.Gw.String()
		}
		if l, err := k.links.LinkByIndex(other.LinkIndex); err == nil {
			text += " dev " + l.Attrs().Name
		}
		return fmt.Sprintf("%s proto %s", text, other.Protocol)
	}
	return "somebody else's route"
}

func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// link finds a device by its name proper: the kernel also answers to alternative names, and those are pods' addresses.
func (k *Kernel) link(name string) (netlink.Link, error) {
	l, err := k.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	if l.Attrs().Name != name {
		return nil, fmt.Errorf("device %s: %w", name, unix.ENODEV)
	}
	if kind := k.kindOf(name); kind != "" && l.Type() != kind { // nothing is written to somebody else's device
		return l, fmt.Errorf("%w: a %s device has the name %s", errForeign, l.Type(), name)
	}
	return l, nil
}

// single makes a change of a kind of which there are few.
func (k *Kernel) single(c backend.Change) error {
	switch row := c.Row().(type) {
	case backend.VXLAN:
		return k.device(c, row.Name, func() error { return k.makeVXLAN(row) }, func(l netlink.Link) error { return k.alterVXLAN(l, row) })
	case backend.Bridge:
		return k.device(c, row.Name, func() error { return k.makeBridge(row) }, func(l netlink.Link) error {
			return k.alterDevice(l, row.MTU, row.MAC[:], row.Up)
		})
	case backend.Sysctl:
		return k.knob(row)
	case backend.Port:
		return k.plug(row)
	case backend.Half:
		return k.Detach([]backend.Pod{{Link: row.Link}})
	case backend.Addr:
		l, err := k.link(row.Dev)
		if err != nil {
			return err
		}
		addr := netlink.Addr{IPNet: netOf(row)}
		if c.New == nil {
			return k.links.AddrDel(l, &addr)
		}
		addr.Flags = unix.IFA_F_NODAD // ours by lease: nobody to ask, and no second lost in asking
		return k.links.AddrAdd(l, &addr)
	}
	return fmt.Errorf("%s: %w", c.Row(), errors.ErrUnsupported)
}

func netOf(a backend.Addr) *net.IPNet {
	return &net.IPNet{IP: a.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(a.Prefix.Bits(), a.Prefix.Addr().BitLen())}
}

// device removes, makes or alters a device.
func (k *Kernel) device(c backend.Change, name string, create func() error, alter func(netlink.Link) error) error {
	if c.Old == nil {
		return create()
	}
	l, err := k.link(name)
	if err != nil {
		return err
	}
	if c.New == nil {
		return k.links.LinkDel(l)
	}
	return alter(l)
}

func (k *Kernel) makeVXLAN(v backend.VXLAN) error {
	dev, err := k.link(v.Dev)
	if err != nil {
		return err
	}
	if l := k.renamed(v.MAC, func(l netlink.Link) bool {
		old, ok := l.(*netlink.Vxlan)
		return ok && uint32(old.VxlanId) == v.VNI && uint16(old.Port) == v.Port
	}); l != nil {
		if err := k.rename(l, v.Name); err != nil {
			return err
		}
		return k.alterVXLAN(l, v)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, v.MAC[:] // given now, udev leaves the MAC alone
	l := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(v.VNI), VtepDevIndex: dev.Attrs().Index, SrcAddr: v.Local.AsSlice(),
		Port: int(v.Port), Learning: v.Learning,
	}
	if err := k.add(l); err != nil {
		return err
	}
	return k.alterDevice(l, v.MTU, nil, v.Up)
}

// add makes a device. Of one in the way it says what that is.
func (k *Kernel) add(l netlink.Link) error {
	err := k.links.LinkAdd(l)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	name := l.Attrs().Name
	if other, lookup := k.link(name); lookup == nil || errors.Is(lookup, errForeign) {
		return fmt.Errorf("a %s device has the name %s: rename or remove it, or give overlayd another name", other.Type(), name)
	}
	return fmt.Errorf("%w: another VXLAN device uses this VNI and port: remove it, or choose another Backend.VNI", err)
}

// alterVXLAN makes the device as wanted, alive where the kernel can and anew where it cannot.
func (k *Kernel) alterVXLAN(l netlink.Link, v backend.VXLAN) error {
	old, ok := l.(*netlink.Vxlan)
	if !ok {
		return fmt.Errorf("%s is a %s device: %w", v.Name, l.Type(), unix.EEXIST)
	}
	dev, err := k.link(v.Dev)
	if err != nil {
		return err
	}
	same4 := (old.SrcAddr.To4() != nil) == v.Local.Is4()
	if uint32(old.VxlanId) != v.VNI || uint16(old.Port) != v.Port || old.Learning != v.Learning || !same4 {
		if err := k.links.LinkDel(l); err != nil {
			return err
		}
		return k.makeVXLAN(v)
	}
	if !old.SrcAddr.Equal(v.Local.AsSlice()) || old.VtepDevIndex != dev.Attrs().Index {
		if err := k.moveVXLAN(l, v, dev.Attrs().Index); err != nil {
			return err
		}
	}
	return k.alterDevice(l, v.MTU, v.MAC[:], v.Up)
}

// moveVXLAN gives the live device another local address and uplink. The netlink package can only say this of a new one.
func (k *Kernel) moveVXLAN(l netlink.Link, v backend.VXLAN, dev int) error {
	local := uint16(nl.IFLA_VXLAN_LOCAL)
	if !v.Local.Is4() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(v.VNI))
	data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(dev)))
	data.AddRtAttr(int(local), v.Local.AsSlice())
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	req.AddData(msg)
	req.AddData(info)
	return errors.Join(k.rows.batch([]*nl.NetlinkRequest{req})...)
}

func (k *Kernel) makeBridge(b backend.Bridge) error {
	if l := k.renamed(b.MAC, func(l netlink.Link) bool { return l.Type() == "bridge" }); l != nil {
		if err := k.rename(l, b.Name); err != nil {
			return err
		}
		return k.alterDevice(l, b.MTU, nil, b.Up)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = b.Name, b.MAC[:] // a MAC of its own: an inherited one changes with the ports
	l := &netlink.Bridge{LinkAttrs: attrs}
	if err := k.add(l); err != nil {
		return err
	}
	return k.alterDevice(l, b.MTU, nil, b.Up) // a bridge keeps only an MTU that is set after it was made
}

// plug makes a pod's link a port of the bridge again.
func (k *Kernel) plug(p backend.Port) error {
	l, err := k.link(p.Link)
	if err != nil {
		return err
	}
	bridge, err := k.link(p.Bridge)
	if err != nil {
		return err
	}
	if err := k.links.LinkSetMasterByIndex(l, bridge.Attrs().Index); err != nil {
		return err
	}
	return k.links.LinkSetHairpin(l, true)
}

// alterDevice sets what every device has. A nil mac is left alone.
func (k *Kernel) alterDevice(l netlink.Link, mtu int, mac net.HardwareAddr, up bool) error {
	errs := []error{k.links.LinkSetMTU(l, mtu)}
	if mac != nil && l.Attrs().HardwareAddr.String() != mac.String() {
		errs = append(errs, k.links.LinkSetHardwareAddr(l, mac))
	}
	if up {
		errs = append(errs, k.links.LinkSetUp(l))
	}
	return errors.Join(errs...)
}
