package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// watchAgain is the pause before a lost subscription is made anew.
const watchAgain = 500 * time.Millisecond

// Watch calls kick when something happened in the kernel that may concern us, until the context ends, and returns its
// error. It is a hint and no more: events get lost (ENOBUFS, which is a kick too), and some changes have none. It sees
// the network namespace of the thread that calls it.
func Watch(ctx context.Context, near Near, kick func(), lost func(error)) error {
	for {
		err := watch(ctx, near, kick)
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
func watch(ctx context.Context, near Near, kick func()) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		concerns := func(kind uint16, body []byte) bool { return concerns(kind, body, near) }
		return listen(ctx, unix.NETLINK_ROUTE, groups(), concerns, kick)
	})
	group.Go(func() error {
		return listen(ctx, unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES}, nftConcerns, kick)
	})
	return group.Wait()
}

// listen reads one socket.
func listen(ctx context.Context, protocol int, groups []int, concerns func(uint16, []byte) bool, kick func()) error {
	file, err := subscribe(protocol, groups)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read from
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	kick() // what happened before there was a subscription is not told
	buf := make([]byte, receiveBuffer)
	for {
		n, err := file.Read(buf)
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

func subscribe(protocol int, groups []int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	errs := []error{unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}), setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)}
	for _, g := range groups {
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g))
	}
	if err := errors.Join(errs...); err != nil {
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
		return binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT != 0 || near.VTEP(addr)
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
