package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/subnet"
)

// spoiled are node files under which nothing can be attached, by what is wrong with them, and what an error says of that.
var spoiled = map[string]struct {
	spoil func(t *testing.T, h *host)
	says  string
}{
	"missing": {func(t *testing.T, h *host) { must(t, os.Remove(h.file)) }, "does not exist"},
	"garbage": {func(t *testing.T, h *host) { must(t, os.WriteFile(h.file, []byte("{garbage"), 0o644)) }, "not readable"},
	"empty":   {func(t *testing.T, h *host) { must(t, os.WriteFile(h.file, nil, 0o644)) }, "not readable"},
	"a directory": {func(t *testing.T, h *host) {
		h.file = filepath.Dir(h.file)
	}, "is a directory"},
	"of another boot": {change(func(n *subnet.NodeFile) { n.Boot = "00000000-0000-0000-0000-000000000000" }), "reboot"},
	"of a lease that ended": {func(t *testing.T, h *host) {
		h.node.Deadline = sinceBoot(t) - int64(5*time.Second)
		h.write(t)
	}, "the lease of 10.5.1.0/24 ended 5 s ago"},
	"of a later release":     {change(func(n *subnet.NodeFile) { n.Version = 2 }), "version 2"},
	"of a host without pods": {change(func(n *subnet.NodeFile) { n.Bridge = "" }), "--bridge none"},
	"without subnets":        {change(func(n *subnet.NodeFile) { n.Subnets = nil }), "0 subnets"},
	"with a foreign gateway": {change(func(n *subnet.NodeFile) { n.Gateways[0] = n.Subnets[0].Addr().Prev() }), "gateway"},
	"with an impossible MTU": {change(func(n *subnet.NodeFile) { n.MTU = 1 << 20 }), "MTU 1048576"},
}

func change(f func(*subnet.NodeFile)) func(*testing.T, *host) {
	return func(t *testing.T, h *host) {
		f(&h.node)
		h.write(t)
	}
}

func TestADDWaitsForAUsableNodeFile(t *testing.T) {
	for name, test := range spoiled {
		t.Run(name, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			before := text(t, h.Netns)
			test.spoil(t, h)
			h.refuse(t, h.add("c1", pod), types.ErrTryAgainLater, h.file, test.says)
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), "")
		})
	}
}

func TestSTATUSSaysWhetherADDCanBeServed(t *testing.T) {
	status := func(h *host) call {
		return call{command: "STATUS", conf: h.conf("1.1.0", "net", "")}
	}
	t.Run("good", func(t *testing.T) {
		h := newHost(t, "10.5.1.0/24")
		h.do(t, status(h))
	})
	for name, test := range spoiled {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "10.5.1.0/24")
			test.spoil(t, h)
			h.refuse(t, status(h), 50, h.file, test.says)
		})
	}
}

func TestADDWaitsForTheBridge(t *testing.T) {
	for name, spoil := range map[string]func() error{
		"missing":                func() error { return nil },
		"only another's altname": func() error { return plant("br9", bridgeName) },
	} {
		t.Run(name, func(t *testing.T) {
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			must(t, h.Do(dropBridge))
			must(t, h.Do(spoil))
			before := text(t, h.Netns)
			h.refuse(t, h.add("c1", pod), types.ErrTryAgainLater, "bridge "+bridgeName+" does not exist")
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), "")
		})
	}
}

// dropBridge removes the bridge from the namespace of the calling thread.
func dropBridge() error {
	l, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

func TestANodeFileWithoutDeadlineIsUsable(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	h.node.Deadline = 0
	h.write(t)
	h.do(t, h.add("c1", pod))
}

func TestThePodHasTheMTUOfTheNodeFileNotOfTheBridge(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	h.node.MTU = 1300
	h.write(t)
	h.do(t, h.add("c1", pod))
	for what, s := range map[string]string{"the pod": text(t, pod), "the host": text(t, h.Netns)} {
		if !strings.Contains(s, "mtu 1300") {
			t.Errorf("%s is\n%s\nwant in it: mtu 1300", what, s)
		}
	}
}
