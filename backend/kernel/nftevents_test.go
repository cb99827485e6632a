package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// listener hears what the kernel tells of nf_tables. "nft monitor" of nftables 1.0.6 reads beyond its memory, and may
// crash, when it prints an element of a concatenation with ranges.
type listener struct {
	t  testing.TB
	fd int
}

func listen(t testing.TB) *listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<24) // root's alone; without it events may get lost, and drain says so
	must(t, errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)))
	return &listener{t, fd}
}

// drain returns a line for each event until now, without those that end an interval: events are sent before the act returns.
func (l *listener) drain() string {
	l.t.Helper()
	var text strings.Builder
	buf := make([]byte, 1<<18)
	for {
		n, _, err := unix.Recvfrom(l.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return text.String()
		}
		must(l.t, err)
		for rest := buf[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(rest))
			l.event(&text, int(binary.NativeEndian.Uint16(rest[4:]))&0xff, rest[unix.NLMSG_HDRLEN:size])
			rest = rest[min(len(rest), (size+3)&^3):]
		}
	}
}

// nftKinds are the messages of nf_tables that a test asks for.
var nftKinds = map[int]string{
	unix.NFT_MSG_NEWTABLE: "add table", unix.NFT_MSG_DELTABLE: "delete table", unix.NFT_MSG_NEWCHAIN: "add chain", unix.NFT_MSG_DELCHAIN: "delete chain",
	unix.NFT_MSG_NEWRULE: "add rule", unix.NFT_MSG_DELRULE: "delete rule", unix.NFT_MSG_NEWSET: "add set", unix.NFT_MSG_DELSET: "delete set",
	unix.NFT_MSG_NEWSETELEM: "add element", unix.NFT_MSG_DELSETELEM: "delete element", unix.NFT_MSG_NEWGEN: "generation", unix.NFT_MSG_NEWOBJ: "add object", unix.NFT_MSG_DELOBJ: "delete object",
}

func (l *listener) event(text *strings.Builder, kind int, body []byte) {
	what, ok := nftKinds[kind]
	if !ok {
		return
	}
	if kind == unix.NFT_MSG_NEWGEN {
		fmt.Fprintln(text, what)
		return
	}
	family := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_BRIDGE: "bridge"}[body[0]]
	attrs := l.attributes(body[4:])
	name := fmt.Sprintf("%s %s %s %s", what, family, unix.ByteSliceToString(attrs[1]), strings.ToValidUTF8(unix.ByteSliceToString(attrs[2]), "?"))
	if kind != unix.NFT_MSG_NEWSETELEM && kind != unix.NFT_MSG_DELSETELEM {
		fmt.Fprintln(text, name)
		return
	}
	for _, element := range l.list(attrs[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
		e := l.attributes(element)
		if flags := e[unix.NFTA_SET_ELEM_FLAGS]; len(flags) == 4 && flags[3]&unix.NFT_SET_ELEM_INTERVAL_END != 0 {
			continue
		}
		fmt.Fprintf(text, "%s %x\n", name, e[unix.NFTA_SET_ELEM_KEY])
	}
}

func (l *listener) list(b []byte) [][]byte {
	l.t.Helper()
	var all [][]byte
	attrs, err := nl.ParseRouteAttr(b)
	must(l.t, err)
	for _, a := range attrs {
		all = append(all, a.Value)
	}
	return all
}

func (l *listener) attributes(b []byte) map[int][]byte {
	l.t.Helper()
	all := map[int][]byte{}
	attrs, err := nl.ParseRouteAttr(b)
	must(l.t, err)
	for _, a := range attrs {
		all[int(a.Attr.Type&nl.NLA_TYPE_MASK)] = a.Value
	}
	return all
}
