package main

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/e2e/lab"
)

// ledger knows who has which address.
type ledger struct {
	mu   sync.Mutex
	held map[netip.Addr]string
}

func (l *ledger) take(who string, all []netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range all {
		if other := l.held[a]; other != "" {
			return fmt.Errorf("%s has %s, which %s has", who, a, other)
		}
		l.held[a] = who
	}
	return nil
}

func (l *ledger) leave(all []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range all {
		delete(l.held, a)
	}
}

// come attaches, and goes again.
func (h *host) comeAndGo(t *testing.T, who string, pod *lab.Netns, l *ledger) error {
	a, err := h.run(h.add(who, pod))
	if err != nil || a.err != nil {
		return fmt.Errorf("ADD %s: %w", who, firstOf(err, a))
	}
	got := addrs(parsed(t, a.text))
	if err := l.take(who, got); err != nil {
		return err
	}
	l.leave(got) // from now on somebody else may have it
	if a, err = h.run(h.del(who, pod)); err != nil || a.err != nil {
		return fmt.Errorf("DEL %s: %w", who, firstOf(err, a))
	}
	return nil
}

func firstOf(err error, a answer) error {
	if err != nil {
		return err
	}
	return a.err
}

func TestManyComeAndGoAtOnce(t *testing.T) {
	t.Parallel()
	const atOnce = 16
	rounds := amount(t, "OVERLAYD_CHURN", 160) / atOnce
	h := newHost(t, "10.5.1.0/27", "fd00:5:1::/64") // 29 addresses for up to 16: they get into each other's way
	before := text(t, h.Netns)
	book := &ledger{held: map[netip.Addr]string{}}
	errs := make(chan error, atOnce*(rounds+1))
	var all sync.WaitGroup
	for i := range atOnce {
		pod := newSpace(t)
		all.Go(func() {
			for r := range rounds {
				errs <- h.comeAndGo(t, fmt.Sprintf("c%d-%d", i, r), pod, book)
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	same(t, "the host", text(t, h.Netns), before)
}

// once sends one datagram and waits for its answer; nothing is sent again.
func once(from *lab.Netns, to netip.Addr) error {
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(to, 7).String())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	const patience = 3 * time.Second
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("once")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 64))
	return err
}

// An address that comes back with another MAC is what neighbours' caches are wrong about.
func TestTheFirstPacketToAnAddressThatCameBackIsAnswered(t *testing.T) {
	for _, subnet := range []string{"10.5.1.0/24", "fd00:5:1::/64"} {
		t.Run(subnet, func(t *testing.T) {
			t.Parallel()
			h, other, pod := newHost(t, subnet), newSpace(t), newSpace(t)
			h.do(t, h.add("other", other)) // keeps the bridge up
			must(t, pod.Echo())
			ip := h.node.Subnets[0].Addr().Next().Next().Next().Next()
			for i := range amount(t, "OVERLAYD_REUSE", 50) {
				c := h.add("c1", pod).with("CNI_ARGS", fmt.Sprintf("IP=%s;MAC=02:00:00:00:01:%02x", ip, i%256))
				h.do(t, c)
				for name, from := range map[string]*lab.Netns{"the host": h.Netns, "another pod": other} {
					if err := once(from, ip); err != nil {
						t.Fatalf("round %d from %s: %v", i, name, err)
					}
				}
				h.do(t, h.del("c1", pod))
			}
		})
	}
}
