package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// configure sets up the pod's side, from inside the pod. Routes are changed to what was really made.
func (j *job) configure(addrs []address, routes []*types.Route, mac subnet.MAC) error {
	l, err := j.pod.kernel.find(j.ifname, unix.IFLA_IFNAME)
	if err != nil {
		return err
	}
	j.pod.index = l.index
	steps := []step{{fmt.Sprintf("set up with MAC %s", mac), upped(unix.RTM_SETLINK, l.index, macAttr(mac))}}
	for _, a := range addrs {
		steps = append(steps, step{fmt.Sprintf("add %s/%d", a.ip, a.prefix.Bits()), addrRequest(l.index, a)})
	}
	for _, r := range routes {
		if r.GW != nil && (r.GW.To4() == nil) != (r.Dst.IP.To4() == nil) {
			return fmt.Errorf("route %s via %s: they are not of one family", &r.Dst, r.GW)
		}
		steps = append(steps, step{fmt.Sprintf("route %s via %s", &r.Dst, r.GW), routeRequest(l.index, r)})
		if !isDefault(r) {
			continue
		}
		if err := j.tryDefault(steps, r); err != nil { // further routes may lead through this one
			return err
		}
		steps = nil
	}
	return j.pod.kernel.do(steps...)
}

// isDefault says whether the route is a default route that may get another metric.
func isDefault(r *types.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Priority <= 0
}

// behind is more than the metric of any route that the kernel or we make unless told.
const behind = 2048

// tryDefault takes steps of which the last adds a default route. If another network of the pod has one, this one goes behind:
// it stands in when that is gone.
func (j *job) tryDefault(steps []step, r *types.Route) error {
	last := len(steps) - 1
	for i, err := range j.pod.kernel.all(steps) {
		if i == last && errors.Is(err, unix.EEXIST) {
			r.Priority = behind + j.pod.index
			err = j.pod.kernel.do(step{fmt.Sprintf("with metric %d", r.Priority), routeRequest(j.pod.index, r)})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", steps[i].what, err)
		}
	}
	return nil
}

// addrRequest adds an address. One of IPv6 is ours by claim: to ask the others for it would take a second.
func addrRequest(index int, a address) *nl.NetlinkRequest {
	family := unix.AF_INET
	if !a.ip.Is4() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = uint32(index), uint8(a.prefix.Bits())
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.ip.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.ip.AsSlice()))
	const pointToPoint = 31 // such a network has no broadcast address (RFC 3021)
	switch {
	case !a.ip.Is4():
		msg.Flags = unix.IFA_F_NODAD
	case a.prefix.Bits() < pointToPoint:
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(a)))
	}
	return req
}

// broadcast is the last address of an IPv4 network.
func broadcast(a address) []byte {
	all := uint32(1)<<(a.ip.BitLen()-a.prefix.Bits()) - 1
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a.ip.AsSlice())|all)
}

func routeRequest(index int, r *types.Route) *nl.NetlinkRequest {
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET6
	raw := func(ip net.IP) []byte {
		if four := ip.To4(); four != nil {
			return four
		}
		return ip
	}
	if len(raw(r.Dst.IP)) == net.IPv4len {
		msg.Family = unix.AF_INET
	}
	ones, _ := r.Dst.Mask.Size()
	msg.Dst_len = uint8(ones)
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(msg)
	number := func(kind, v int) { req.AddData(nl.NewRtAttr(kind, nl.Uint32Attr(uint32(v)))) }
	req.AddData(nl.NewRtAttr(unix.RTA_DST, raw(r.Dst.IP)))
	number(unix.RTA_OIF, index)
	if r.GW == nil {
		msg.Scope = unix.RT_SCOPE_LINK
	} else {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, raw(r.GW)))
	}
	if r.Scope != nil {
		msg.Scope = uint8(*r.Scope)
	}
	if r.Table != nil && *r.Table > 0 {
		msg.Table = unix.RT_TABLE_UNSPEC // it may not fit there
		number(unix.RTA_TABLE, *r.Table)
	}
	if r.Priority > 0 {
		number(unix.RTA_PRIORITY, r.Priority)
	}
	metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
	for kind, v := range map[int]int{unix.RTAX_MTU: r.MTU, unix.RTAX_ADVMSS: r.AdvMSS} {
		if v > 0 {
			metrics.AddRtAttr(kind, nl.Uint32Attr(uint32(v)))
		}
	}
	if r.MTU > 0 || r.AdvMSS > 0 {
		req.AddData(metrics)
	}
	return req
}

// tune sets the kernel's switches of the pod's side before it goes up. What runtimes do to keep IPv6 away is undone if it has
// an IPv6 address, and done if nobody in the network has one: each pod's link-local messages would only go to all others.
// Router advertisements of other pods are never believed, and a MAC that is set is told to the neighbours.
func (j *job) tune(addrs []address) error {
	has := slices.ContainsFunc(addrs, func(a address) bool { return !a.ip.Is4() })
	known := slices.ContainsFunc(j.node.Networks, func(n netip.Prefix) bool { return !n.Addr().Is4() })
	six := map[string]string{"accept_ra": "0"}
	switch {
	case has:
		six["disable_ipv6"], six["ndisc_notify"] = "0", "1"
	case !known:
		six["disable_ipv6"] = "1"
	}
	err := turn("ipv6", j.ifname, six)
	if !has && errors.Is(err, fs.ErrNotExist) {
		err = nil // a kernel without IPv6
	}
	return errors.Join(err, turn("ipv4", j.ifname, map[string]string{"arp_notify": "1"}))
}

// turn sets the kernel's switches of a device in the network namespace of the calling thread. The way to them leads past those
// of all namespaces (fs/proc/proc_sysctl.c, proc_sys_compare): it is gone once.
func turn(family, device string, knobs map[string]string) error {
	dir := "/proc/sys/net/" + family + "/conf/" + device
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at) //nolint:errcheck // nothing was written to it
	for name, value := range knobs {
		if err := writeAt(at, name, value); err != nil {
			return &fs.PathError{Op: "set", Path: dir + "/" + name, Err: err}
		}
	}
	return nil
}

// writeAt writes a value to a file of a directory.
func writeAt(dir int, name, value string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(value))
	return errors.Join(err, unix.Close(fd))
}

// announce has the kernel tell the other ports of the bridge where the addresses are now: setting a MAC, be it the same, sends
// a gratuitous ARP request and an unsolicited neighbour advertisement for each (see [tune]). A packet socket of our own would
// cost more than all the rest of an ADD: its end waits for an RCU grace period.
func (p *pod) announce(mac subnet.MAC) error {
	return p.kernel.do(step{"announce " + mac.String(), about(unix.RTM_SETLINK, 0, p.index, macAttr(mac))})
}

const (
	patience = time.Second
	stride   = 50 * time.Microsecond // and twice as long each time, for who asks keeps the kernel from it
	longest  = time.Millisecond
)

// awaitCarrier waits until the kernel has seen the link's carrier (net/core/link_watch.c does that in its own time). What
// is sent over a device before that is dropped, and the next attempt to resolve an address comes a second later.
func awaitCarrier(kernel *conn, index int) error {
	return await(func() (bool, error) {
		l, err := kernel.look(index)
		return l.running, err
	})
}

// awaitLocal waits until the pod takes packets to its IPv6 addresses: their routes in the table local are made by a work
// queue of the kernel (net/ipv6/addrconf.c, addrconf_dad_work), without duplicate address detection too.
func (p *pod) awaitLocal(addrs []address) error {
	for _, a := range addrs {
		if a.ip.Is4() {
			continue
		}
		err := await(func() (bool, error) {
			msg := nl.NewRtMsg()
			msg.Family, msg.Dst_len = unix.AF_INET6, uint8(a.ip.BitLen())
			req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
			req.AddData(msg)
			req.AddData(nl.NewRtAttr(unix.RTA_DST, a.ip.AsSlice()))
			body, err := p.kernel.ask(req)
			return err == nil && len(body) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(body).Type == unix.RTN_LOCAL, nil // no way yet is no error
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// await asks until the answer is yes. What is late still comes by itself: then it is no error either. It sleeps in the kernel:
// the thread may be one on which nothing else runs, and to give it up and get it back costs more than the wait.
func await(ask func() (bool, error)) error {
	deadline := time.Now().Add(patience)
	for wait := stride; ; wait = min(2*wait, longest) {
		if done, err := ask(); err != nil || done || time.Now().After(deadline) {
			return err
		}
		pause := unix.NsecToTimespec(wait.Nanoseconds())
		if err := unix.Nanosleep(&pause, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
	}
}
