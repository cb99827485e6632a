package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// seen pings from a pod and says by what address it is seen.
func (v *town) seen(from *lab.Netns, to string) netip.Addr {
	v.t.Helper()
	answer, err := from.Ping(ip(to))
	if err != nil {
		v.t.Errorf("%v", err)
	}
	return answer.Seen
}

func (v *town) wantSeen(what string, from *lab.Pod, to, want string) {
	v.t.Helper()
	if got := v.seen(from.Netns, to); got != ip(want) {
		v.t.Errorf("%s: %s sees %s, want %s", what, to, got, want)
	}
}

// TestMasquerade looks at pods' packets that leave the network, and at those that do not.
func TestMasquerade(t *testing.T) {
	lab.Need(t)
	v := newTown(t, "masq", nil)
	one, far := v.pods[0], v.pods[2]
	own, own6 := one.Addrs[0].String(), one.Addrs[1].String()
	for h, addr := range map[*lab.Host]string{v.hosts[0]: "2001:db8::7", v.stranger: "2001:db8::66"} {
		_, err := h.Output(nil, "ip", "addr", "add", addr+"/64", "dev", "eth0", "nodad")
		need(t, err)
	}
	for _, p := range v.subnets() { // so that what leaves with a pod's address is answered too
		via := map[bool]string{true: "192.0.2.7", false: "2001:db8::7"}[p.Addr().Is4()]
		_, err := v.stranger.Output(nil, "ip", "route", "add", p.String(), "via", via)
		need(t, err)
	}
	v.wantSeen("outside", one, "192.0.2.66", "192.0.2.7")
	v.wantSeen("outside, IPv6", one, "2001:db8::66", "2001:db8::7")
	v.wantSeen("another host", one, "192.0.2.8", "192.0.2.7")
	for i := range 2 {
		v.wantSeen("inside", one, far.Addrs[i].String(), one.Addrs[i].String())
		v.wantSeen("on the same host", one, v.pods[1].Addrs[i].String(), one.Addrs[i].String())
	}
	v.group(one, own)
	v.ports()
	v.marked()
	v.untracked()
	v.unclaimed()

	v.again("--masq-exclude=192.0.2.64/28,2001:db8::60/124")
	v.wantSeen("excluded", one, "192.0.2.66", own)
	v.wantSeen("excluded, IPv6", one, "2001:db8::66", own6)
	v.wantSeen("another host, not excluded", one, "192.0.2.8", "192.0.2.7")
	v.again("--ip-masq=false")
	v.wantSeen("without masquerade", one, "192.0.2.66", own)
	v.wantSeen("without masquerade, IPv6", one, "2001:db8::66", own6)
	v.again()
	v.wantSeen("with it again", one, "192.0.2.66", "192.0.2.7")
}

// group sends to a multicast group that the host forwards: the source stays.
func (v *town) group(from *lab.Pod, own string) {
	group := netip.MustParseAddrPort("239.1.2.3:9998")
	up := v.wire(v.hosts[0].Netns, "eth0")
	router := v.forwardGroup(from.Addrs[0], group.Addr())
	defer unix.Close(router)
	_, err := from.Output(nil, "ip", "route", "add", "239.0.0.0/8", "dev", "eth0")
	need(v.t, err)
	frames := func(f []byte) bool { return len(f) > 34 && bytes.Equal(f[30:34], group.Addr().AsSlice()) }
	foreign := func(f []byte) bool { return frames(f) && !bytes.Equal(f[26:30], ip(own).AsSlice()) }
	need(v.t, lab.Eventually("packets to a group leave", func() error {
		var conn *net.UDPConn
		err := from.Do(func() (err error) {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(group))
			return err
		})
		if err != nil {
			return err
		}
		raw, errRaw := conn.SyscallConn()
		errTTL := errRaw
		if errRaw == nil {
			errTTL = errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 9) }), err)
		}
		_, errWrite := conn.Write([]byte("to a group"))
		if err := errors.Join(errTTL, errWrite, conn.Close()); err != nil {
			return err
		}
		if up.Out(frames) == 0 {
			return errors.New("none has left")
		}
		return nil
	}))
	if n := up.Out(foreign); n > 0 {
		v.t.Errorf("%d packets to a group left with another source than the pod's", n)
	}
}

// forwardGroup makes host1 forward from its bridge to its uplink what the source sends to the group, as a multicast router
// does (linux/mroute.h), until the socket is closed.
func (v *town) forwardGroup(source, group netip.Addr) (socket int) {
	const mrtInit, mrtAddVIF, mrtAddMFC, useIndex = 200, 202, 204, 8
	need(v.t, v.hosts[0].Do(func() (err error) {
		if socket, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IGMP); err != nil {
			return err
		}
		errs := []error{unix.SetsockoptInt(socket, unix.IPPROTO_IP, mrtInit, 1)}
		for number, dev := range []string{"ovl0", "eth0"} {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			vif := make([]byte, 16) // struct vifctl
			vif[0], vif[2], vif[3] = byte(number), useIndex, 1
			vif[8] = byte(link.Attrs().Index)
			errs = append(errs, unix.SetsockoptString(socket, unix.IPPROTO_IP, mrtAddVIF, string(vif)))
		}
		mfc := make([]byte, 60) // struct mfcctl
		copy(mfc, source.AsSlice())
		copy(mfc[4:], group.AsSlice())
		mfc[10+1] = 1 // to the second device: a TTL of more than 1
		errs = append(errs, unix.SetsockoptString(socket, unix.IPPROTO_IP, mrtAddMFC, string(mfc)))
		return errors.Join(errs...)
	}))
	return socket
}

// ports sends to outside from the VXLAN port and from many others: none has it afterwards.
func (v *town) ports() {
	const flows = 300
	ear, err := v.stranger.Listen(0)
	need(v.t, err)
	defer ear.Close()
	one := v.pods[0]
	to := netip.AddrPortFrom(ip("192.0.2.66"), ear.Port())
	for i := range flows {
		need(v.t, one.SendUDP(0, to, fmt.Appendf(nil, "any %d", i)))
	}
	for _, p := range v.pods[:2] {
		need(v.t, p.SendUDP(8472, to, []byte("from 8472")))
	}
	need(v.t, lab.Eventually("all datagrams are there", func() error {
		if n := len(ear.Heard()); n < flows+2 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	}))
	for _, h := range ear.Heard() {
		if h.From.Port() == 8472 || h.From.Addr() != ip("192.0.2.7") {
			v.t.Errorf("%q came from %s", h.Text, h.From)
		}
	}
}

// marked lets kube-proxy's mark decide.
func (v *town) marked() {
	const rules = `table inet marks { chain forward { type filter hook forward priority filter; ip saddr 10.5.0.0/16 ip daddr 192.0.2.66 udp dport 7 meta mark set 0x4000; }; }`
	_, err := v.hosts[0].Output(nil, "nft", rules)
	need(v.t, err)
	v.wantSeen("marked for somebody else's masquerade", v.pods[0], "192.0.2.66", v.pods[0].Addrs[0].String())
	_, err = v.hosts[0].Output(nil, "nft", "delete table inet marks")
	need(v.t, err)
}

// untracked makes sure that conntrack knows the pods' packets, and none that carries them.
func (v *town) untracked() {
	v.wantSeen("by VXLAN", v.pods[0], v.pods[2].Addrs[0].String(), v.pods[0].Addrs[0].String())
	need(v.t, v.hosts[0].Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			return err
		}
		inner := 0
		for _, f := range flows {
			if f.Forward.Protocol == unix.IPPROTO_UDP && (f.Forward.DstPort == 8472 || f.Forward.SrcPort == 8472) && !v.isPod(f.Forward.SrcIP) {
				v.t.Errorf("conntrack has %s", f)
			}
			if v.isPod(f.Forward.SrcIP) {
				inner++
			}
		}
		if inner == 0 {
			return errors.New("conntrack knows no pod's packets: the test proves nothing")
		}
		return nil
	}))
}

func (v *town) isPod(a net.IP) bool {
	addr, ok := netip.AddrFromSlice(a)
	return ok && netip.MustParsePrefix("10.5.0.0/16").Contains(addr.Unmap())
}

// unclaimed sends to parts of the network that nobody has: they are answered, and do not leave by the default route.
func (v *town) unclaimed() {
	host := v.hosts[0]
	_, err := host.Output(nil, "sh", "-ec", `ip route add default via 192.0.2.66
		ip -6 route add default via 2001:db8::66`)
	need(v.t, err)
	up := v.wire(host.Netns, "eth0")
	leaves := func(f []byte) bool { return bytes.Contains(f, []byte("to nobody")) }
	for _, from := range []*lab.Netns{v.pods[0].Netns, host.Netns} {
		for _, to := range []string{"10.5.99.9", "fd00:5:0:9999::9"} {
			err := from.Refusal(at(ip(to), probePort), []byte("to nobody"), lab.Patience)
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EACCES) {
				v.t.Errorf("%s to %s: %v, want an answer that it is unreachable", from.Name, to, err)
			}
		}
	}
	need(v.t, v.pods[0].SendUDP(0, at(ip("198.51.100.9"), probePort), []byte("to somebody")))
	need(v.t, lab.Eventually("what is outside leaves by the default route", func() error {
		if up.Out(marked([]byte("to somebody"))) == 0 {
			return errors.New("nothing does")
		}
		return nil
	}))
	if n := up.Out(leaves); n > 0 {
		v.t.Errorf("%d packets to nobody's subnets left the host", n)
	}
}
