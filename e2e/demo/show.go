package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

// topology draws who is where.
func (s *show) topology() error {
	s.title("Topology")
	s.line("%s", "switch 192.0.2.0/24 (the underlay)")
	s.line("%s", "|-- etcd "+lab.EtcdAddr)
	for _, h := range s.lab.Hosts() {
		subnets, err := h.Subnets()
		if err != nil {
			return err
		}
		s.line("|-- %s %s", s.paint(bold, h.ID), h.Addr)
		s.line("|   overlay.1 %s, ovl0 %s/%d", subnets[0].Addr(), subnets[0].Addr().Next(), subnets[0].Bits())
		for _, p := range s.pods {
			if p.Host == h {
				s.line("|   `-- %s %s", s.paint(bold, p.ID), s.paint(green, p.Addrs[0].String()))
			}
		}
	}
	return nil
}

func (s *show) leases() error {
	s.title("Leases in etcd (overlayd leases)")
	text, err := s.lab.Hosts()[0].Overlayd("leases")
	for line := range strings.Lines(text) {
		s.line("%s", strings.TrimRight(line, "\n"))
	}
	return err
}

// sender is somebody who pings: a pod or a host.
type sender struct {
	*lab.Netns
	name string
	host *lab.Host
	own  netip.Addr // as pods elsewhere must see it
	near netip.Addr // as pods of the same host must see it
}

func (s *show) senders() ([]sender, error) {
	var all []sender
	for _, p := range s.pods {
		all = append(all, sender{p.Netns, p.ID, p.Host, p.Addrs[0], p.Addrs[0]})
	}
	for _, h := range s.lab.Hosts() {
		subnets, err := h.Subnets()
		if err != nil {
			return nil, err
		}
		all = append(all, sender{h.Netns, h.ID, h, subnets[0].Addr(), subnets[0].Addr().Next()})
	}
	return all, nil
}

// matrix lets everybody ping every pod. Each pod answers with the sender's address as it sees it: were there NAT anywhere,
// that would be another.
func (s *show) matrix() error {
	s.title("Round trip from each pod and host to each pod; \"seen as\" is the sender's address at the other end")
	senders, err := s.senders()
	if err != nil {
		return err
	}
	head := []string{"from", "seen as"}
	for _, p := range s.pods {
		head = append(head, p.ID)
	}
	rows := [][]string{head}
	var failed []error
	pairs := 0
	for _, from := range senders {
		row := []string{from.name, from.own.String()}
		if from.near != from.own {
			row[1] += " (here " + from.near.String() + ")"
		}
		for _, to := range s.pods {
			cell, err := from.try(to)
			failed = append(failed, err)
			row = append(row, cell)
			pairs++
		}
		rows = append(rows, row)
	}
	s.table(rows)
	if err := errors.Join(failed...); err != nil {
		return err
	}
	s.line("%s", s.paint(green, fmt.Sprintf("all %d pairs answer, no address was translated", pairs)))
	return nil
}

func (f sender) try(to *lab.Pod) (string, error) {
	answer, err := f.Ping(to.Addrs[0])
	if err != nil {
		return "lost", err
	}
	want := f.own
	if f.host == to.Host {
		want = f.near
	}
	if f.name == to.ID {
		want = to.Addrs[0]
	}
	if answer.Seen != want {
		return "NAT", fmt.Errorf("%s sees %s as %s", to.ID, f.name, answer.Seen)
	}
	return fmt.Sprintf("%.2f ms", float64(answer.Took)/float64(time.Millisecond)), nil
}

// kernel prints the rows by which host1 reaches host2, as the kernel has them.
func (s *show) kernel() error {
	h, peer := s.lab.Hosts()[0], s.lab.Hosts()[1]
	s.title("What the kernel of host1 holds to reach host2 (ip and bridge show the same; protocol 142 is overlayd)")
	var state backend.State
	err := h.Do(func() error {
		k, err := kernel.Open(kernel.Options{Node: h.ID, Bridge: "ovl0", NoUplink: true})
		if err != nil {
			return err
		}
		_, state, err = k.Read()
		return errors.Join(err, k.Close())
	})
	if err != nil {
		return err
	}
	subnets, err := peer.Subnets()
	if err != nil {
		return err
	}
	found := 0
	for _, e := range state.Entries() {
		var kind string
		switch e := e.(type) {
		case backend.Route:
			if e.Dst == subnets[0] {
				kind = "route"
			}
		case backend.Nexthop:
			if e.Via == subnets[0].Addr() {
				kind = "nexthop"
			}
		case backend.Neigh:
			if e.IP == subnets[0].Addr() {
				kind = "neighbour"
			}
		case backend.FDB:
			if e.Dst.String() == peer.Addr {
				kind = "FDB"
			}
		}
		if kind != "" {
			found++
			s.line("%-10s %s", kind, e)
		}
	}
	const want = 4
	if found != want {
		return fmt.Errorf("%d rows instead of %d", found, want)
	}
	return nil
}

// packet catches one packet of a ping on host1's cable and takes it apart.
func (s *show) packet() error {
	s.title("One packet between pods of two hosts, as the underlay carries it")
	from, to := s.pods[0], s.pods[podsPerHost]
	var socket int
	err := s.lab.Underlay().Do(func() (err error) {
		const everything = 0x0300 // ETH_P_ALL in network byte order
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, everything)
		return err
	})
	if err != nil {
		return fmt.Errorf("listen on the underlay: %w", err)
	}
	defer unix.Close(socket) //nolint:errcheck // only read from
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	if _, err := from.Ping(to.Addrs[0]); err != nil {
		return err
	}
	frame := make([]byte, 2048)
	for range 1000 {
		n, _, err := unix.Recvfrom(socket, frame, 0)
		if err != nil {
			break
		}
		if lines := decode(frame[:n], from.Addrs[0], to.Addrs[0]); lines != nil {
			for _, line := range lines {
				s.line("%s", line)
			}
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}
