package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// echoPort is where every host and pod answers: UDP, with the sender's address as seen there and the request's text.
const echoPort = 7

// Echo answers in the namespace until the lab ends.
func (n *Netns) Echo() error {
	var conn *net.UDPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: echoPort})
		return err
	})
	if err != nil {
		return fmt.Errorf("answer on %s: %w", n.Name, err)
	}
	go func() {
		buf := make([]byte, 64)
		for {
			size, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				continue // ICMP errors of earlier answers arrive here
			}
			answer := append(from.Addr().Unmap().AppendTo(nil), 0)
			_, _ = conn.WriteToUDPAddrPort(append(answer, buf[:size]...), from) // a lost answer is what is measured
		}
	}()
	return nil
}

// Answer is one reply to a ping.
type Answer struct {
	Seen netip.Addr    // the sender's address as the other side saw it
	Took time.Duration // round trip
}

const (
	pingPatience = 3 * time.Second
	pingAgain    = 300 * time.Millisecond
)

// Ping sends datagrams from the namespace until one is answered.
func (n *Netns) Ping(to netip.Addr) (Answer, error) {
	f, err := n.dial(to)
	if err != nil {
		return Answer{}, err
	}
	defer f.conn.Close() //nolint:errcheck // a datagram socket
	for deadline := time.Now().Add(pingPatience); time.Now().Before(deadline); {
		start := time.Now()
		if err := f.send(0); err != nil {
			return Answer{}, err
		}
		_ = f.conn.SetReadDeadline(start.Add(pingAgain))
		_, seen, err := f.receive()
		if err == nil {
			return Answer{Seen: seen, Took: time.Since(start)}, nil
		}
	}
	return Answer{}, fmt.Errorf("%s: no answer from %s within %s", n.Name, to, pingPatience)
}

// Flow is traffic that goes on until it is stopped: a datagram every 10 ms, each to be answered.
type Flow struct {
	conn *net.UDPConn
	stop chan struct{}
	all  sync.WaitGroup

	mu       sync.Mutex
	sent     int
	answered map[uint32]bool
}

func (n *Netns) dial(to netip.Addr) (*Flow, error) {
	f := &Flow{stop: make(chan struct{}), answered: map[uint32]bool{}}
	err := n.Do(func() (err error) {
		f.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", n.Name, to, err)
	}
	return f, nil
}

func (f *Flow) send(number uint32) error {
	_, err := f.conn.Write(binary.BigEndian.AppendUint32(nil, number))
	return err
}

var errNotAnswer = errors.New("not an answer")

func (f *Flow) receive() (uint32, netip.Addr, error) {
	buf := make([]byte, 128)
	n, err := f.conn.Read(buf)
	if err != nil {
		return 0, netip.Addr{}, err
	}
	for i, b := range buf[:n] {
		if b == 0 && n-i == 5 {
			seen, err := netip.ParseAddr(string(buf[:i]))
			return binary.BigEndian.Uint32(buf[i+1:]), seen, err
		}
	}
	return 0, netip.Addr{}, errNotAnswer
}

const (
	flowEvery = 10 * time.Millisecond
	flowRest  = time.Second // for answers still on their way
)

// Traffic begins a flow.
func (n *Netns) Traffic(to netip.Addr) (*Flow, error) {
	f, err := n.dial(to)
	if err != nil {
		return nil, err
	}
	f.all.Go(func() {
		tick := time.NewTicker(flowEvery)
		defer tick.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
			f.mu.Lock()
			number := uint32(f.sent)
			f.sent++
			f.mu.Unlock()
			_ = f.send(number) // one that cannot be sent is one lost
		}
	})
	f.all.Go(func() {
		for {
			number, _, err := f.receive()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				f.mu.Lock()
				f.answered[number] = true
				f.mu.Unlock()
			}
		}
	})
	return f, nil
}

// Counts returns how many datagrams were sent so far and how many of them were answered.
func (f *Flow) Counts() (sent, answered int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent, len(f.answered)
}

// Stop ends the flow, waits for late answers and returns how many datagrams were sent, and the numbers of those lost: a
// hundred is a second.
func (f *Flow) Stop() (sent int, lost []int) {
	close(f.stop)
	deadline := time.Now().Add(flowRest)
	for {
		sent, answered := f.Counts()
		if answered == sent || time.Now().After(deadline) {
			_ = f.conn.Close()
			f.all.Wait()
			for i := range sent {
				if !f.answered[uint32(i)] {
					lost = append(lost, i)
				}
			}
			return sent, lost
		}
		time.Sleep(flowEvery) //nolint:forbidigo // a wait for a condition with a deadline
	}
}
