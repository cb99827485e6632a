package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stream is one TCP connection on which numbered words flow until it is stopped, as fast as a busy service sends.
type Stream struct {
	from, to net.Conn
	all      sync.WaitGroup

	mu       sync.Mutex
	received int
	err      error
}

const (
	streamEvery = 10 * time.Millisecond
	streamBurst = 64 << 10 // bytes: many full segments
)

// Stream connects the namespace to another and begins to send.
func (n *Netns) Stream(to *Netns, at netip.Addr) (*Stream, error) {
	var l *net.TCPListener
	err := to.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{IP: at.AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer l.Close() //nolint:errcheck // the one connection has been accepted
	s := &Stream{}
	err = n.Do(func() (err error) {
		s.from, err = net.DialTimeout("tcp", l.Addr().String(), Patience)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", n.Name, at, err)
	}
	if s.to, err = l.Accept(); err != nil {
		return nil, errors.Join(err, s.from.Close())
	}
	s.all.Go(s.send)
	s.all.Go(s.receive)
	return s, nil
}

func (s *Stream) send() {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	burst := make([]byte, streamBurst)
	for word := uint64(0); ; <-tick.C {
		for i := 0; i < len(burst); i += 8 {
			binary.BigEndian.PutUint64(burst[i:], word)
			word++
		}
		if _, err := s.from.Write(burst); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Stream) receive() {
	burst := make([]byte, streamBurst)
	for word := uint64(0); ; {
		if _, err := io.ReadFull(s.to, burst); err != nil {
			s.fail(err)
			return
		}
		for i := 0; i < len(burst); i += 8 {
			if got := binary.BigEndian.Uint64(burst[i:]); got != word {
				s.fail(fmt.Errorf("word %d arrived as %d", word, got))
				return
			}
			word++
		}
		s.mu.Lock()
		s.received += len(burst)
		s.mu.Unlock()
	}
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
}

// Received is how many bytes have arrived in their order, and what has ended the stream if it has ended.
func (s *Stream) Received() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received, s.err
}

// Stop ends the stream.
func (s *Stream) Stop() {
	_ = s.from.Close()
	_ = s.to.Close()
	s.all.Wait()
}

// Bytes of headers in front of a datagram.
const (
	headers4 = 20 + 8
	headers6 = 40 + 8
)

// Large sends a packet of so many bytes that nobody on the way may cut into pieces, until it is answered (0) or the sender
// is told that it is too large (how large it may be). That neither happens is an error: packets vanish in a black hole.
func (n *Netns) Large(to netip.Addr, size int) (most int, err error) {
	f, err := n.dial(to)
	if err != nil {
		return 0, err
	}
	defer f.conn.Close() //nolint:errcheck // a datagram socket
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	level, discover, mtu, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, headers4
	if to.Is6() {
		level, discover, mtu, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, headers6
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_DO) })
	if err := errors.Join(err, set); err != nil {
		return 0, err
	}
	packet, answer := make([]byte, size-headers), make([]byte, 128)
	for deadline := time.Now().Add(pingPatience); time.Now().Before(deadline); {
		_, err := f.conn.Write(packet)
		if errors.Is(err, syscall.EMSGSIZE) {
			control := raw.Control(func(fd uintptr) { most, err = unix.GetsockoptInt(int(fd), level, mtu) })
			return most, errors.Join(control, err)
		}
		_ = f.conn.SetReadDeadline(time.Now().Add(pingAgain))
		if _, err := f.conn.Read(answer); err == nil {
			return 0, nil
		}
	}
	return 0, fmt.Errorf("%s: a packet of %d bytes to %s is neither answered nor refused: a black hole", n.Name, size, to)
}
