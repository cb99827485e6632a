package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestRoutesThatCannotBeAreRefused(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	for _, route := range []string{`{"dst":"192.0.2.0/24","gw":"a05:109::1"}`, `{"dst":"2001:db8::/32","gw":"10.5.1.1"}`} {
		c := h.add("c1", pod)
		c.conf = h.conf("1.0.0", "net", `,"routes":[`+route+`]`)
		h.refuse(t, c, 999, "not of one family")
		same(t, "the host", text(t, h.Netns), before)
	}
}

// TestADefaultRouteThatGoesBehindComesBeforeRoutesThroughIt, and many routes are more than one message.
func TestADefaultRouteThatGoesBehindComesBeforeRoutesThroughIt(t *testing.T) {
	theirs(t, "static")
	h, pod := newHost(t, "fd00:5:1::/64"), newSpace(t)
	must(t, pod.Do(func() error {
		err := plant("x")
		x, lookup := netlink.LinkByName("x")
		if err := errors.Join(err, lookup); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("172.16.0.2/24")
		return errors.Join(err, netlink.LinkSetUp(x), netlink.AddrAdd(x, addr),
			netlink.RouteAdd(&netlink.Route{LinkIndex: x.Attrs().Index, Gw: addr.IP.Mask(addr.Mask).To4(), Flags: int(netlink.FLAG_ONLINK)}))
	}))
	c := h.add("c1", pod)
	var more strings.Builder
	const many = 6000
	for i := range many {
		fmt.Fprintf(&more, `,{"dst":"20.%d.%d.0/24","gw":"198.51.100.1"}`, i/256, i%256)
	}
	c.conf = h.conf("1.0.0", "net", `,"ipam":{"type":"static","addresses":[{"address":"198.51.100.4/32"}]},"routes":[{"dst":"0.0.0.0/0"}`+more.String()+`]`)
	c.env = map[string]string{"CNI_PATH": debian}
	h.do(t, c)
}
