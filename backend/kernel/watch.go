package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// watchAgain is the pause before a lost subscription is made anew.
const watchAgain = 500 * time.Millisecond

// Ear hears the kernel's events. The zero Ear is ready for use; a nil one hears nothing.
type Ear struct {
	mu   sync.Mutex
	open []*listener
}

// Watch calls kick when something happened in the kernel that may concern us, until the context ends, and returns its
// error. It is a hint and no more: events get lost (ENOBUFS, which is a kick too), and some changes have none. It sees
// the network namespace of the thread that calls it.
func (e *Ear) Watch(ctx context.Context, near Near, kick func(), lost func(error)) error {
	for {
		err := e.watch(ctx, near, kick)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lost(err)
		kick()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchAgain):
		}
	}
}

// shut leaves all groups until the function that it returns is called. What happens meanwhile is not told: the caller looks
// again. To tell us of many thousand rows that we make takes the kernel, and us, as long as to make them.
func (e *Ear) shut() (reopen func()) {
	if e == nil {
		return func() {}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	shut := slices.Clone(e.open)
	for _, l := range shut {
		_ = l.each(unix.NETLINK_DROP_MEMBERSHIP) // then it hears more than it need
	}
	return func() {
		for _, l := range shut {
			if err := l.each(unix.NETLINK_ADD_MEMBERSHIP); err != nil {
				_ = l.file.Close() // a new one is opened, which kicks
			}
		}
	}
}

// Near tells what concerns us among the much that a busy host's kernel tells.
type Near struct {
	Route func(netip.Prefix) bool // whether somebody's route leads to where peers may be
	VTEP  func(netip.Addr) bool   // whether a neighbour is the inner side of a peer's tunnel
}

// groups are rtnetlink's multicast groups in which changes of our rows are told. A link that goes down takes nexthops,
// routes and neighbours along without a word: links count for those too.
func groups() []int {
	return []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	}
}

// watch reads both sockets until one of them fails.
func (e *Ear) watch(ctx context.Context, near Near, kick func()) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		concerns := func(kind uint16, body []byte) bool { return concerns(kind, body, near) }
		return e.listen(ctx, unix.NETLINK_ROUTE, groups(), concerns, kick)
	})
	group.Go(func() error {
		return e.listen(ctx, unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES}, nftConcerns, kick)
	})
	return group.Wait()
}

// listener is one socket.
type listener struct {
	file   *os.File
	groups []int
}

// each joins all groups, or leaves them.
func (l *listener) each(how int) error {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		for _, g := range l.groups {
			errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, how, g))
		}
	})
	return errors.Join(append(errs, err)...)
}

// listen reads one socket.
func (e *Ear) listen(ctx context.Context, protocol int, groups []int, concerns func(uint16, []byte) bool, kick func()) error {
	l := &listener{groups: groups}
	var err error
	if l.file, err = subscribe(protocol); err != nil {
		return err
	}
	defer l.file.Close() //nolint:errcheck // only read from
	e.mu.Lock()
	err = l.each(unix.NETLINK_ADD_MEMBERSHIP)
	e.open = append(e.open, l)
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.open = slices.DeleteFunc(e.open, func(other *listener) bool { return other == l })
	}()
	if err != nil {
		return fmt.Errorf("subscribe to the kernel's events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	kick() // what happened before there was a subscription is not told
	buf := make([]byte, receiveBuffer)
	for {
		n, err := l.file.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			kick() // more happened than the socket could hold
			continue
		case err != nil:
			return fmt.Errorf("read the kernel's events: %w", err)
		}
		for h, body := range messages(buf[:n]) {
			if protocol == unix.NETLINK_ROUTE && h.Flags&unix.NLM_F_REPLACE != 0 || concerns(h.Type, body) { // what was replaced may have been ours
				kick()
				break
			}
		}
	}
}

func subscribe(protocol int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}), setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("subscribe to the kernel's events: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil
}

// concerns sorts out what a busy host has much of and what is never ours: others' routes, unless a router comes or goes
// between us and a peer by them, and neighbours that come and go by themselves. A peer's should not.
func concerns(kind uint16, body []byte, near Near) bool {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		p, ok := pathOf(body)
		return ok && (p.protocol == backend.Protocol || p.dst.Bits() == 0 || p.table == unix.RT_TABLE_MAIN && near.Route(p.dst))
	case unix.RTM_NEWNEIGH:
		if len(body) < unix.SizeofNdMsg {
			return false
		}
		var addr netip.Addr
		for kind, value := range attributes(body[unix.SizeofNdMsg:]) {
			if kind == unix.NDA_DST {
				addr, _ = netip.AddrFromSlice(value)
			}
		}
		return binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT != 0 || addr.IsValid() && near.VTEP(addr)
	}
	return true
}

// nftConcerns sorts out what others do in their own tables: chains count, for one may drop what we forward, and rules of
// iptables' chains, for one may be ours.
func nftConcerns(kind uint16, body []byte) bool {
	if len(body) < sizeofNfgenmsg {
		return false
	}
	kind &= 0xff // the message without its subsystem
	if kind == unix.NFT_MSG_NEWGEN || kind == unix.NFT_MSG_GETGEN {
		return false
	}
	var table string
	for attr, value := range attributes(body[sizeofNfgenmsg:]) {
		if attr == unix.NFTA_TABLE_NAME { // attribute 1 of every message
			table = unix.ByteSliceToString(value)
			break
		}
	}
	switch kind {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELTABLE:
		return true
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		return table == backend.TableName || table == iptablesTable
	}
	return table == backend.TableName
}
