package main

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

func TestOneAttachmentGetsOneNameAndOneAddressEverywhere(t *testing.T) {
	var first string
	for range 2 {
		h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
		got := fmt.Sprint(addrs(h.attach(t, h.add("c1", pod))))
		if first == "" {
			first = got
		}
		same(t, "the address", got, first)
		h.do(t, h.del("c1", pod))
		same(t, "the address after a DEL", fmt.Sprint(addrs(h.attach(t, h.add("c1", pod)))), first)
	}
}

func TestNetworksAndInterfacesOfOneContainerDoNotCollide(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	seen := map[netip.Addr]bool{}
	attach := func(network, ifname string) {
		c := h.add("c1", pod)
		c.ifname, c.conf = ifname, h.conf("1.0.0", network, "")
		// A second default route in the same table would be refused.
		must(t, pod.Do(func() error { return dropRoutes() }))
		seen[addrs(h.attach(t, c))[0]] = true
	}
	attach("one", "eth0")
	attach("one", "eth1")
	attach("two", "net0")
	if len(seen) != 3 {
		t.Errorf("three attachments have the addresses %v", seen)
	}
	got := text(t, h.Netns)
	for _, at := range [][2]string{{"one", "eth0"}, {"one", "eth1"}, {"two", "net0"}} {
		link, alias := linkOf(at[0], "c1", at[1])+" veth ", " alias "+at[0]+"/c1/"+at[1]+" "
		if !strings.Contains(got, link) || !strings.Contains(got, alias) {
			t.Errorf("the host is\n%s\nwant in it: %s and %s", got, link, alias)
		}
	}
}

// dropRoutes removes the default routes of the namespace of the calling thread.
func dropRoutes() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	for _, r := range routes {
		if ones, _ := r.Dst.Mask.Size(); ones == 0 && err == nil {
			err = netlink.RouteDel(&r)
		}
	}
	return err
}

func TestParallelADDsGetDistinctAddresses(t *testing.T) {
	const count = 20
	h := newHost(t, "10.5.1.0/27", "fd00:5:1::/64") // 29 addresses: they must get into each other's way
	pods := make([]*lab.Netns, count)
	for i := range pods {
		pods[i] = newSpace(t)
	}
	answers, errs := make([]answer, count), make([]error, count)
	var all sync.WaitGroup
	for i, pod := range pods {
		all.Go(func() { answers[i], errs[i] = h.run(h.add(fmt.Sprint("c", i), pod)) })
	}
	all.Wait()
	for i := range pods {
		must(t, errs[i])
		if answers[i].err != nil {
			t.Errorf("ADD c%d: %v", i, answers[i].err)
		}
	}
	names := map[string]bool{}
	must(t, h.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			var own []string
			for _, n := range l.Attrs().AltNames {
				names[n] = true
				if a, ok := subnet.ParseAltName(n); ok {
					own = append(own, a.String()[strings.LastIndexAny(a.String(), ".:")+1:])
				}
			}
			if l.Type() == "veth" && len(own) != 2 {
				t.Errorf("%s holds %q, want an address of each family", l.Attrs().Name, l.Attrs().AltNames)
			}
		}
		return err
	}))
	if len(names) != 2*count {
		t.Errorf("%d pods hold the addresses %v, want %d", count, names, 2*count)
	}
}

func TestAFullSubnetSaysSoAndLeavesNothing(t *testing.T) {
	h := newHost(t, "10.5.1.0/29")
	const room = 5 // of eight, less VTEP, gateway and broadcast
	pods := make([]*lab.Netns, room)
	seen := map[netip.Addr]bool{}
	for i := range pods {
		pods[i] = newSpace(t)
		seen[addrs(h.attach(t, h.add(fmt.Sprint("c", i), pods[i])))[0]] = true
	}
	for i := 2; i < 2+room; i++ {
		if a := netip.AddrFrom4([4]byte{10, 5, 1, byte(i)}); !seen[a] {
			t.Errorf("nobody has %s; the pods have %v", a, seen)
		}
	}
	late, before := newSpace(t), text(t, h.Netns)
	h.refuse(t, h.add("late", late), types.ErrTryAgainLater, "5", "10.5.1.0/29", "in use")
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, late), "")

	h.do(t, h.del("c3", pods[3]))
	h.do(t, h.add("late", late))
}

func TestAnAddressIsClaimedInEveryFamilyOrInNone(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
	taken := addrs(h.attach(t, h.add("c1", pod)))
	h.do(t, h.del("c1", pod))
	must(t, h.Do(func() error { return plant("other", subnet.AltName(taken[1])) }))

	got := addrs(h.attach(t, h.add("c1", pod)))
	if got[0] == taken[0] || got[1] == taken[1] {
		t.Errorf("the pod has %v, though %s was taken", got, taken[1])
	}
	var l netlink.Link
	must(t, h.Do(func() (err error) { l, err = netlink.LinkByName(linkOf("net", "c1", "eth0")); return err }))
	if len(l.Attrs().AltNames) != 2 {
		t.Errorf("the link holds %q, want %v", l.Attrs().AltNames, got)
	}
}

func TestAnAddressEndsWithThePod(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
	before := text(t, h.Netns)
	had := addrs(h.attach(t, h.add("c1", pod)))
	must(t, pod.Remove())
	must(t, lab.Eventually("the link is gone", func() error {
		if got := text(t, h.Netns); got != before {
			return fmt.Errorf("the host is\n%s\nwant\n%s", got, before)
		}
		return nil
	}))
	again := addrs(h.attach(t, h.add("c1", newSpace(t))))
	same(t, "the address of the next", fmt.Sprint(again), fmt.Sprint(had))
}
