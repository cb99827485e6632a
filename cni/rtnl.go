package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// conn is a socket to rtnetlink(7) in the network namespace of the thread that opened it, for ADD and DEL. Requests that
// follow each other are one message. The netlink package's own socket clears 64 kB of stack for each answer and reads all of
// a link's some hundred attributes: that was a tenth of an ADD.
type conn struct {
	fd  int
	seq uint32
	buf []byte
}

// answerSize is more than any link takes: its alternative names may have 64 KiB. What is not touched costs nothing.
const answerSize = 128 << 10

// answerTimeoutSec is longer than the kernel takes for anything, unless it is stuck.
const answerTimeoutSec = 60

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTimeoutSec}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("prepare a netlink socket: %w", err)
	}
	return &conn{fd: fd, buf: make([]byte, answerSize)}, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// step is one request, and what is done by it for whoever reads the error.
type step struct {
	what string
	req  *nl.NetlinkRequest
}

// do has the kernel take the steps, and returns the first error: it does not stop at one.
func (c *conn) do(steps ...step) error {
	for i, err := range c.all(steps) {
		if err != nil {
			return fmt.Errorf("%s: %w", steps[i].what, err)
		}
	}
	return nil
}

// mostSteps in one message: the socket must hold it, and an error for each of them.
const mostSteps = 64

// all returns the outcome of each step.
func (c *conn) all(steps []step) []error {
	var errs []error
	for part := range slices.Chunk(steps, mostSteps) {
		errs = append(errs, c.some(part)...)
	}
	return errs
}

func (c *conn) some(steps []step) []error {
	var message []byte
	for i, s := range steps {
		s.req.Seq = c.seq + 1 + uint32(i)
		if i == len(steps)-1 { // errors come without being asked for
			s.req.Flags |= unix.NLM_F_ACK
		}
		message = append(message, s.req.Serialize()...)
	}
	first := c.seq + 1
	c.seq += uint32(len(steps))
	errs := make([]error, len(steps))
	_, err := c.exchange(message, func(m syscall.NetlinkMessage) {
		if i := m.Header.Seq - first; i < uint32(len(errs)) {
			errs[i] = failure(m)
		}
	})
	if err != nil {
		errs[0] = err
	}
	return errs
}

// ask sends a request that is answered by one message and returns its body, valid until the next request.
func (c *conn) ask(req *nl.NetlinkRequest) ([]byte, error) {
	c.seq++
	req.Seq = c.seq
	var err error
	body, failed := c.exchange(req.Serialize(), func(m syscall.NetlinkMessage) {
		if m.Header.Seq == c.seq { // not what came late for a request that was given up
			err = failure(m)
		}
	})
	return body, errors.Join(failed, err)
}

// exchange sends a message and reads until the last of its requests is answered: by an acknowledgement or an error, or by a
// body.
func (c *conn) exchange(message []byte, outcome func(syscall.NetlinkMessage)) ([]byte, error) {
	if err := unix.Sendto(c.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask the kernel: %w", err)
	}
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("hear the kernel: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 { // somebody in the pod
			continue
		}
		answers, err := syscall.ParseNetlinkMessage(c.buf[:n])
		if err != nil {
			return nil, fmt.Errorf("hear the kernel: %w", err)
		}
		for _, m := range answers {
			if m.Header.Type == unix.NLMSG_ERROR {
				outcome(m)
			}
			switch {
			case m.Header.Seq != c.seq:
			case m.Header.Type == unix.NLMSG_ERROR:
				return nil, nil
			default:
				return m.Data, nil
			}
		}
	}
}

var errShort = errors.New("the kernel's answer is too short")

// failure reads an acknowledgement: nil, or an errno with what the kernel says of it.
func failure(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return errShort
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	err := unix.Errno(-code)
	const words, attrs = 1, 4 + unix.NLMSG_HDRLEN // NLMSGERR_ATTR_MSG, and where attributes begin
	if m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(m.Data) > attrs {
		if said, ok := attribute(m.Data[attrs:], words); ok {
			return fmt.Errorf("%w: %s", err, unix.ByteSliceToString(said))
		}
	}
	return err
}

// attribute finds one of a list.
func attribute(b []byte, kind uint16) ([]byte, bool) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK == kind {
			return b[unix.SizeofRtAttr:size], true
		}
		b = b[min(len(b), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return nil, false
}

// link is what ADD and DEL have to know of one.
type link struct {
	index             int
	name, kind, alias string
	mac               net.HardwareAddr
	mtu               int
	up, running       bool // set up; and packets go through
}

// errNoLink says that there is no link of a name.
var errNoLink = errors.New("does not exist")

// find looks a link up by its name, or by an alternative one.
func (c *conn) find(name string, how uint16) (link, error) {
	l, err := c.read(about(unix.RTM_GETLINK, 0, 0, nl.NewRtAttr(int(how), nl.ZeroTerminated(name)), withoutStats()))
	switch {
	case errors.Is(err, unix.ENODEV):
		return l, fmt.Errorf("%s %w", name, errNoLink)
	case err != nil:
		return l, fmt.Errorf("look for %s: %w", name, err)
	}
	return l, nil
}

// look looks at the link with that index.
func (c *conn) look(index int) (link, error) {
	l, err := c.read(about(unix.RTM_GETLINK, 0, index, withoutStats()))
	if err != nil {
		return l, fmt.Errorf("look at link %d: %w", index, err)
	}
	return l, nil
}

// withoutStats leaves a link's counters out of the answer.
func withoutStats() *nl.RtAttr {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	return nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))
}

// read asks for one link.
func (c *conn) read(req *nl.NetlinkRequest) (link, error) {
	body, err := c.ask(req)
	if err == nil && len(body) < unix.SizeofIfInfomsg {
		err = errShort
	}
	if err != nil {
		return link{}, err
	}
	info, attrs := nl.DeserializeIfInfomsg(body), body[unix.SizeofIfInfomsg:]
	l := link{index: int(info.Index), up: info.Flags&unix.IFF_UP != 0}
	text := func(from []byte, kind uint16) string {
		value, _ := attribute(from, kind)
		return unix.ByteSliceToString(value)
	}
	l.name, l.alias = text(attrs, unix.IFLA_IFNAME), text(attrs, unix.IFLA_IFALIAS)
	about, _ := attribute(attrs, unix.IFLA_LINKINFO)
	l.kind = text(about, nl.IFLA_INFO_KIND)
	mac, _ := attribute(attrs, unix.IFLA_ADDRESS)
	l.mac = bytes.Clone(mac)
	if mtu, ok := attribute(attrs, unix.IFLA_MTU); ok && len(mtu) >= 4 {
		l.mtu = int(binary.NativeEndian.Uint32(mtu))
	}
	state, ok := attribute(attrs, unix.IFLA_OPERSTATE)
	const operUp = 6 // IF_OPER_UP
	l.running = ok && bytes.Equal(state, []byte{operUp})
	return l, nil
}

// about is a request about the link with that index. It does not name the link: that would be to rename it.
func about(kind, flags, index int, more ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	return newRequest(kind, flags, info, more...)
}

// upped is [about] that sets the link up too.
func upped(kind, index int, more ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index, info.Flags, info.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return newRequest(kind, 0, info, more...)
}

func newRequest(kind, flags int, head nl.NetlinkRequestData, more ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.AddData(head)
	for _, m := range more {
		req.AddData(m)
	}
	return req
}

// altNameAttr holds an alternative name of a link.
func altNameAttr(name string) *nl.RtAttr {
	list := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	return list
}

// macAttr is a link's address.
func macAttr(mac subnet.MAC) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_ADDRESS, mac[:]) }
