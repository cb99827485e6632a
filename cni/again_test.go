package main

import (
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestASecondADDOfALiveAttachmentFailsAndChangesNothing(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	h.do(t, h.add("c1", pod))
	before, podBefore := text(t, h.Netns), text(t, pod)
	h.refuse(t, h.add("c1", pod), codeAttached, "net/c1/eth0 is attached already", linkOf("net", "c1", "eth0"))
	h.refuse(t, h.add("c1", newSpace(t)), codeAttached, "net/c1/eth0 is attached already")
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, pod), podBefore)
}

func TestADDReplacesAHalfADD(t *testing.T) {
	for _, peer := range []string{"eth0 in the pod", "half in the pod", "half on the host"} {
		t.Run(peer, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			before := text(t, h.Netns)
			where, name := pod, strings.Fields(peer)[0]
			if strings.HasSuffix(peer, "host") {
				where = h.Netns
			}
			must(t, h.Do(func() error { return plantHalf(linkOf("net", "c1", "eth0"), where, name) }))
			r := h.attach(t, h.add("c1", pod))
			checkState(t, h, pod, r, before)
		})
	}
}

// plantHalf makes a pair of devices in the namespace of the calling thread, with the peer elsewhere.
func plantHalf(name string, where *lab.Netns, peer string) error {
	file, err := os.Open(where.Path())
	if err != nil {
		return err
	}
	defer file.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(file.Fd())})
}

func TestADDLeavesTheInterfaceOfAnotherAlone(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	must(t, pod.Do(func() error { return plant("eth0") }))
	before, podBefore := text(t, h.Netns), text(t, pod)
	h.refuse(t, h.add("c1", pod), types.ErrInternal, pod.Path()+" already has an interface eth0")
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, pod), podBefore)
}

// foreign are links of the deterministic name that are not provably ours.
var foreign = map[string]func(name string) error{
	"no veth": func(name string) error { return plant(name) },
	"a veth with another alias": func(name string) error {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		return netlink.LinkSetAlias(l, "net/c9/eth0")
	},
	"an altname of another link": func(name string) error { return plant("other", name) },
	"an altname of a veth": func(name string) error {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "peer"}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		return netlink.LinkAddAltName(l, name)
	},
}

func TestDELLeavesALinkThatIsNotOurs(t *testing.T) {
	for kind, put := range foreign {
		t.Run(kind, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			must(t, h.Do(func() error { return put(linkOf("net", "c1", "eth0")) }))
			before := text(t, h.Netns)
			h.do(t, h.del("c1", pod))
			same(t, "the host", text(t, h.Netns), before)
		})
	}
}

func TestADDLeavesALinkThatIsNotOurs(t *testing.T) {
	for kind, put := range foreign {
		t.Run(kind, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			must(t, h.Do(func() error { return put(linkOf("net", "c1", "eth0")) }))
			before := text(t, h.Netns)
			h.refuse(t, h.add("c1", pod), types.ErrInternal)
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), "")
		})
	}
}

func TestADDNamesTheLinkThatIsInItsWay(t *testing.T) {
	for kind, put := range foreign {
		t.Run(kind, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			link := linkOf("net", "c1", "eth0")
			must(t, h.Do(func() error { return put(link) }))
			h.refuse(t, h.add("c1", pod), types.ErrInternal, link) // it is not the pod that has something
		})
	}
}

func TestAnADDThatFailsInThePodLeavesNothing(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	c := h.add("c1", pod)
	c.conf = h.conf("1.0.0", "net", `,"routes":[{"dst":"192.0.2.0/24","gw":"203.0.113.1"}]`) // the kernel knows no way to this gateway
	h.refuse(t, c, types.ErrInternal, pod.Path(), "route 192.0.2.0/24 via 203.0.113.1")
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, pod), "")
	h.do(t, h.add("c1", pod))
}

func TestAPodWithIPv6SwitchedOffGetsItBack(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t)
	must(t, pod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) }))
	before := text(t, h.Netns)
	r := h.attach(t, h.add("c1", pod))
	checkState(t, h, pod, r, before)
}
