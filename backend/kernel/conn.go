package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is a socket to rtnetlink for rows of which there are thousands: many messages fit one send, dumps are filtered by
// the kernel, and answers are not copied. It belongs to the network namespace in which it was made.
type conn struct {
	fd  int
	buf []byte
}

const (
	// A dump's answer comes in pieces of at most 32 KiB (net/netlink/af_netlink.c, netlink_dump).
	receiveBuffer = 1 << 16
	// Each error is a message in the socket's queue: the queue must hold those of a whole batch.
	queueBytes = 4 << 20
	batchSize  = 500
	// Nothing that rtnetlink does takes this long, unless it is stuck.
	answerTimeoutSec = 10
)

func dial(protocol int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	c := &conn{fd: fd, buf: make([]byte, receiveBuffer)}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		strict(fd, protocol),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTimeoutSec}),
		setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF),
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF),
	)
	if err != nil {
		_ = c.close()
		return nil, fmt.Errorf("prepare a netlink socket: %w", err)
	}
	return c, nil
}

// strict makes rtnetlink refuse what it does not know in a filter of a dump, and so obey the rest.
func strict(fd, protocol int) error {
	if protocol != unix.NETLINK_ROUTE {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
}

// setBuffer asks for a big buffer, with the privilege to pass the limit (net.core.rmem_max) or else without.
func setBuffer(fd, force, plain int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, queueBytes); err == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, queueBytes)
}

func (c *conn) close() error { return unix.Close(c.fd) }

// receive returns the messages of one read; they are valid until the next.
func (c *conn) receive() (iter.Seq2[unix.NlMsghdr, []byte], error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read from netlink: %w", err)
		}
		return messages(c.buf[:n]), nil
	}
}

// messages splits what was read into headers and bodies.
func messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			h := unix.NlMsghdr{
				Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
			}
			if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(b) || !yield(h, b[unix.NLMSG_HDRLEN:h.Len]) {
				return
			}
			b = b[min(len(b), align(int(h.Len))):]
		}
	}
}

// attributes splits a message's body after its fixed part.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK
			if size < unix.SizeofRtAttr || size > len(b) || !yield(kind, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), align(size)):]
		}
	}
}

func align(n int) int { return (n + 3) &^ 3 }

// errInterrupted says that the table changed while it was dumped: what was read may lack rows.
var errInterrupted = errors.New("the kernel's table changed while it was read")

// dump calls each with the body of every message of the answer.
func (c *conn) dump(req *nl.NetlinkRequest, each func(body []byte)) error {
	req.Flags |= unix.NLM_F_DUMP
	if err := unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask netlink: %w", err)
	}
	var interrupted error
	for {
		answer, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range answer {
			if h.Seq != req.Seq {
				continue // the rest of an earlier answer
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = errInterrupted
			}
			switch h.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return errors.Join(interrupted, failure(body))
			default:
				each(body)
			}
		}
	}
}

// get asks for one thing and calls each with the answer's body.
func (c *conn) get(req *nl.NetlinkRequest, each func(body []byte)) error {
	if err := unix.Sendto(c.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask netlink: %w", err)
	}
	for {
		answer, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range answer {
			switch {
			case h.Seq != req.Seq:
			case h.Type == unix.NLMSG_ERROR:
				return failure(body)
			default:
				each(body)
				return nil
			}
		}
	}
}

// batch sends the requests in few sends and returns the kernel's answer to each. A nil request is passed over. Only the
// last of a send asks for an acknowledgement: errors come without being asked for.
func (c *conn) batch(reqs []*nl.NetlinkRequest) []error {
	errs := make([]error, len(reqs))
	for first := 0; first < len(reqs); first += batchSize {
		last := min(first+batchSize, len(reqs))
		if err := c.send(reqs[first:last], errs[first:last]); err != nil {
			for i := range errs[first:last] {
				errs[first+i] = errors.Join(errs[first+i], err) // the outcome is unknown: the next read tells
			}
		}
	}
	return errs
}

func (c *conn) send(reqs []*nl.NetlinkRequest, errs []error) error {
	out := make(attrs, 0, usualBody*len(reqs))
	var final uint32
	place := make(map[uint32]int, len(reqs))
	for i, req := range reqs {
		if req == nil {
			continue
		}
		place[req.Seq], final = i, req.Seq
	}
	for _, req := range reqs {
		if req == nil {
			continue
		}
		if req.Seq == final {
			req.Flags |= unix.NLM_F_ACK
		}
		out = append(out, req.Serialize()...).pad()
	}
	if len(out) == 0 {
		return nil
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	for {
		answer, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range answer {
			i, ours := place[h.Seq]
			if !ours || h.Type != unix.NLMSG_ERROR {
				continue
			}
			errs[i] = failure(body)
			if h.Seq == final {
				return nil
			}
		}
	}
}

// transaction sends the requests to nf_tables, which makes all of them or none.
func (c *conn) transaction(reqs []*nl.NetlinkRequest) error {
	if len(reqs) == 0 {
		return nil
	}
	mark := func(kind int) *nl.NetlinkRequest {
		req := nl.NewNetlinkRequest(kind, 0)
		req.AddData(nfgenmsg{resource: unix.NFNL_SUBSYS_NFTABLES})
		return req
	}
	begin, end := mark(unix.NFNL_MSG_BATCH_BEGIN), mark(unix.NFNL_MSG_BATCH_END)
	reqs[len(reqs)-1].Flags |= unix.NLM_F_ACK
	final := reqs[len(reqs)-1].Seq
	ours := make(map[uint32]bool, len(reqs)+2)
	ours[begin.Seq], ours[end.Seq] = true, true
	out := append(make(attrs, 0, usualBody*(len(reqs)+2)), begin.Serialize()...)
	for _, req := range reqs {
		ours[req.Seq] = true
		out = append(out, req.Serialize()...).pad()
	}
	out = append(out, end.Serialize()...)
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	var first error // the others follow from it
	for {
		answer, err := c.receive()
		if err != nil {
			return errors.Join(first, err)
		}
		for h, body := range answer {
			if h.Type != unix.NLMSG_ERROR || !ours[h.Seq] {
				continue
			}
			if first == nil {
				first = failure(body)
			}
			if h.Seq == final || h.Seq == begin.Seq {
				return first
			}
		}
	}
}

// failure reads the error of an NLMSG_ERROR or NLMSG_DONE, with the kernel's own words where it has some.
func failure(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if len(body) > 4+unix.NLMSG_HDRLEN { // capped: the request's header, then attributes
		for kind, value := range attributes(body[4+unix.NLMSG_HDRLEN:]) {
			if kind == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
				return fmt.Errorf("%w (%s)", errno, value[:len(value)-1])
			}
		}
	}
	return errno
}
