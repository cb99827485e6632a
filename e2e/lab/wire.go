package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Begin starts a program inside the namespace and does not wait for it; what it prints goes to the log file. The caller
// ends it.
func (n *Netns) Begin(log, name string, args ...string) (*Process, error) {
	return start(n, log, nil, name, args...)
}

// Replace takes a host's network card out and puts in another one, with the same address.
func (l *Lab) Replace(h *Host) error {
	err := h.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth0)
	})
	if err != nil {
		return fmt.Errorf("take eth0 out of %s: %w", h.ID, err)
	}
	return l.plug(h.Netns, h.ID, h.Addr)
}

// Wire is a device seen from below: frames are sent as they are, and those that arrive are kept.
type Wire struct {
	file *os.File
	all  sync.WaitGroup

	mu     sync.Mutex
	frames [][]byte
	out    [][]byte
}

// Wire opens a device of the namespace. The caller closes it.
func (n *Netns) Wire(dev string) (*Wire, error) {
	w := &Wire{}
	err := n.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		every := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8) // in network byte order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(every))
		if err != nil {
			return err
		}
		w.file = os.NewFile(uintptr(fd), dev)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		return nil, fmt.Errorf("wire of %s on %s: %w", dev, n.Name, err)
	}
	conn, err := w.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	w.all.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			var size int
			var from unix.Sockaddr
			var failed error
			err := conn.Read(func(fd uintptr) bool {
				size, from, failed = unix.Recvfrom(int(fd), buf, 0)
				return failed != unix.EAGAIN
			})
			switch {
			case err != nil:
				return // closed
			case failed == nil:
				w.keep(slices.Clone(buf[:size]), from)
			}
		}
	})
	return w, nil
}

func (w *Wire) keep(frame []byte, from unix.Sockaddr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
		w.out = append(w.out, frame)
		return
	}
	w.frames = append(w.frames, frame)
}

// Send puts a frame, from its Ethernet header on, on the wire.
func (w *Wire) Send(frame []byte) error {
	_, err := w.file.Write(frame)
	return err
}

// In returns how many frames arrived that match.
func (w *Wire) In(match func(frame []byte) bool) int { return w.count(&w.frames, match) }

// Out returns how many frames left that match.
func (w *Wire) Out(match func(frame []byte) bool) int { return w.count(&w.out, match) }

func (w *Wire) count(frames *[][]byte, match func([]byte) bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, f := range *frames {
		if match(f) {
			n++
		}
	}
	return n
}

// Close gives the socket back.
func (w *Wire) Close() error {
	err := w.file.Close()
	w.all.Wait()
	return err
}

// Ear keeps the datagrams that arrive at a UDP port.
type Ear struct {
	conn *net.UDPConn
	all  sync.WaitGroup

	mu    sync.Mutex
	heard []Heard
}

// Heard is a datagram and its sender as seen by the receiver.
type Heard struct {
	From netip.AddrPort
	Text string
}

// Listen opens a UDP port of the namespace, 0 for any. The caller closes it.
func (n *Netns) Listen(port int) (*Ear, error) {
	e := &Ear{}
	err := n.Do(func() (err error) {
		e.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", n.Name, err)
	}
	e.all.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			size, from, err := e.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			e.mu.Lock()
			e.heard = append(e.heard, Heard{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), string(buf[:size])})
			e.mu.Unlock()
		}
	})
	return e, nil
}

// Heard returns all datagrams so far.
func (e *Ear) Heard() []Heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.heard)
}

// Port is the number of the port.
func (e *Ear) Port() uint16 {
	addr, _ := e.conn.LocalAddr().(*net.UDPAddr)
	return addr.AddrPort().Port()
}

// Close gives the port back.
func (e *Ear) Close() error {
	err := e.conn.Close()
	e.all.Wait()
	return err
}

// SendUDP sends one datagram from a port of the namespace, 0 for any.
func (n *Netns) SendUDP(port int, to netip.AddrPort, text []byte) error {
	return n.send(port, to, text, 0)
}

// Refusal sends a datagram and returns what the network answers to it, nil when it says nothing for the given time.
func (n *Netns) Refusal(to netip.AddrPort, text []byte, patience time.Duration) error {
	return n.send(0, to, text, patience)
}

func (n *Netns) send(port int, to netip.AddrPort, text []byte, patience time.Duration) error {
	var conn *net.UDPConn
	err := n.Do(func() (err error) {
		conn, err = net.DialUDP("udp", &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return fmt.Errorf("%s to %s: %w", n.Name, to, err)
	}
	defer conn.Close() //nolint:errcheck // a datagram socket
	if patience > 0 {
		if err := tellErrors(conn); err != nil {
			return err
		}
	}
	if _, err = conn.Write(text); err != nil || patience == 0 {
		return err
	}
	err = conn.SetReadDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// tellErrors makes the kernel tell what routers answer; without it only the other end's answer counts (ip(7), IP_RECVERR).
func tellErrors(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1); failed != nil { // an IPv4 socket
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		}
	})
	return errors.Join(err, failed)
}

// Path is the file of that name in the host's directory.
func (h *Host) Path(name string) string { return filepath.Join(h.Dir, name) }
