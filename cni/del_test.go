package main

import (
	"os"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestDELSucceedsWhateverIsGone(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, h *host, pod *lab.Netns, c *call){
		"nothing":     func(*testing.T, *host, *lab.Netns, *call) {},
		"CNI_NETNS":   func(_ *testing.T, _ *host, _ *lab.Netns, c *call) { c.netns = "" },
		"netns file":  func(_ *testing.T, _ *host, _ *lab.Netns, c *call) { c.netns = "/run/netns/vanished" },
		"netns mount": func(t *testing.T, h *host, _ *lab.Netns, c *call) { c.netns = h.file }, // the file stays when umount came first
		"the pod":     func(t *testing.T, _ *host, pod *lab.Netns, _ *call) { must(t, pod.Remove()) },
		"node file":   func(t *testing.T, h *host, _ *lab.Netns, _ *call) { must(t, os.Remove(h.file)) },
		"sense of the node file": func(t *testing.T, h *host, _ *lab.Netns, _ *call) {
			must(t, os.WriteFile(h.file, []byte("{garbage"), 0o644))
		},
		"bridge": func(t *testing.T, h *host, _ *lab.Netns, _ *call) { must(t, h.Do(dropBridge)) },
		"lease": func(t *testing.T, h *host, _ *lab.Netns, _ *call) {
			h.node.Deadline = 1
			h.write(t)
		},
		"nothing, in 0.3.1": func(_ *testing.T, h *host, _ *lab.Netns, c *call) { c.conf = h.conf("0.3.1", "net", "") },
		"nothing, and prevResult is given": func(_ *testing.T, h *host, _ *lab.Netns, c *call) {
			c.conf = h.conf("1.0.0", "net", `,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"ovl0"}],"ips":[]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, pod, other := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t), newSpace(t)
			h.do(t, h.add("other", other))
			h.do(t, h.add("c1", pod))
			c := h.del("c1", pod)
			spoil(t, h, pod, &c)
			for range 3 {
				h.do(t, c)
				got := text(t, h.Netns)
				if strings.Contains(got, linkOf("net", "c1", "eth0")) || !strings.Contains(got, "alias net/other/eth0") {
					t.Fatalf("the host is\n%s\nwant it without the link of c1, with that of other", got)
				}
			}
		})
	}
}

func TestDELOfWhatNeverWasSucceeds(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	h.do(t, h.del("c1", pod))
	same(t, "the host", text(t, h.Netns), before)
}

func TestDELTakesTheInterfaceOutOfALivePodAndNoOther(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	must(t, pod.Do(func() error { return plant("eth9") }))
	before := text(t, pod)
	h.do(t, h.add("c1", pod))
	h.do(t, h.del("c1", pod))
	same(t, "the pod", text(t, pod), before)
}

func TestDELRemovesAHalfADD(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	must(t, h.Do(func() error { return plantHalf(linkOf("net", "c1", "eth0"), pod, "eth0") }))
	h.do(t, h.del("c1", pod))
	same(t, "the host", text(t, h.Netns), before)
	same(t, "the pod", text(t, pod), "")
}
