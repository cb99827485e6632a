package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
)

// chains are plugins of Debian behind this one, as runtimes have them, with what the runtime gives along.
var chains = map[string]struct {
	plugins      []string
	behind       string
	capabilities map[string]any
	look         func(t *testing.T, h *host, pod *lab.Netns)
}{
	"portmap": {[]string{"portmap"}, `,{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`,
		map[string]any{"portMappings": []map[string]any{{"HostPort": 8080, "ContainerPort": 7, "Protocol": "udp"}}}, nil},
	"bandwidth": {[]string{"bandwidth"}, `,{"type":"bandwidth","capabilities":{"bandwidth":true}}`,
		map[string]any{"bandwidth": map[string]any{"IngressRate": 8000000, "IngressBurst": 4294967295, "EgressRate": 8000000, "EgressBurst": 4294967295}},
		func(t *testing.T, h *host, _ *lab.Netns) {
			if got := text(t, h.Netns); !strings.Contains(got, " ifb ") {
				t.Errorf("the host is\n%s\nwant an ifb", got)
			}
		}},
	"tuning": {[]string{"tuning"}, `,{"type":"tuning","capabilities":{"mac":true},"mtu":1280,"promisc":true}`,
		map[string]any{"mac": "02:00:5e:10:00:09"},
		func(t *testing.T, _ *host, pod *lab.Netns) {
			if got := text(t, pod); !strings.Contains(got, "eth0 veth 02:00:5e:10:00:09 mtu 1280 up") {
				t.Errorf("the pod is\n%s", got)
			}
		}},
	"firewall": {[]string{"firewall"}, `,{"type":"firewall","backend":"iptables","ingressPolicy":"same-bridge"}`, nil, nil},
	"all": {[]string{"portmap", "bandwidth", "tuning", "firewall"},
		`,{"type":"bandwidth","capabilities":{"bandwidth":true}},{"type":"firewall","backend":"iptables","ingressPolicy":"same-bridge"},` +
			`{"type":"tuning","sysctl":{"net.core.somaxconn":"500"}},{"type":"portmap","capabilities":{"portMappings":true}}`,
		map[string]any{"portMappings": []map[string]any{{"hostPort": 8081, "containerPort": 7, "protocol": "udp"}},
			"bandwidth": map[string]any{"ingressRate": 8000000, "ingressBurst": 80000}}, nil},
}

func TestChains(t *testing.T) {
	for name, test := range chains {
		for _, version := range []string{"0.4.0", "1.0.0"} { // what Debian's speak
			t.Run(name+" "+version, func(t *testing.T) {
				t.Parallel()
				theirs(t, test.plugins...)
				needed(t, "iptables")
				h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
				e := newEngine(t, h, version, `,"capabilities":{"mac":true}`, test.behind)
				rt := runtimeConf("c1", pod.Path(), test.capabilities)
				before := text(t, h.Netns)
				r, err := e.add(rt)
				must(t, err)
				if len(r.IPs) != 1 || r.Interfaces[0].Name != bridgeName {
					t.Errorf("the result is %v", r)
				}
				must(t, pod.Echo())
				if test.look != nil {
					test.look(t, h, pod)
				}
				if !reaches(t, h.Netns, addrs(r)[0]) {
					t.Error("the host does not reach the pod")
				}
				// Debian's portmap 1.1.1 wants the rules of both families, whatever the pod has.
				if err := e.check(rt); err != nil && !strings.Contains(err.Error(), "could not check ipv6 dnat") {
					t.Error(err)
				}
				must(t, e.del(rt))
				same(t, "the host", text(t, h.Netns), before)
				same(t, "the pod", text(t, pod), "")
				must(t, e.del(rt))
				rt.NetNS = ""
				must(t, e.del(rt)) // RemovePodSandbox
			})
		}
	}
}

// What containerd and ctr do to a DEL: say no namespace, or one that is gone, or lose the cache.
func TestDELsOfRuntimesLeaveNothingOfOurs(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, pod *lab.Netns, e *engine, rt *libcni.RuntimeConf){
		"no namespace": func(_ *testing.T, _ *lab.Netns, _ *engine, rt *libcni.RuntimeConf) { rt.NetNS = "" },
		"gone":         func(t *testing.T, pod *lab.Netns, _ *engine, _ *libcni.RuntimeConf) { must(t, pod.Remove()) },
		"no cache": func(t *testing.T, _ *lab.Netns, e *engine, _ *libcni.RuntimeConf) {
			e.cni = libcni.NewCNIConfigWithCacheDir([]string{lab.Binaries(), debian}, t.TempDir(), nil)
		},
		"no veth": func(t *testing.T, _ *lab.Netns, e *engine, _ *libcni.RuntimeConf) {
			must(t, e.Do(func() error { return withLink(linkOf("net", "c1", "eth0"), netlink.LinkDel) }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			theirs(t, "tuning")
			h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
			before := text(t, h.Netns)
			e := newEngine(t, h, "1.0.0", "", `,{"type":"tuning","mtu":1300}`)
			rt := runtimeConf("c1", pod.Path(), nil)
			_, err := e.add(rt)
			must(t, err)
			lose(t, pod, &e, rt)
			for range 2 {
				must(t, e.del(rt))
				must(t, lab.Eventually("the link is gone", func() error {
					if got := text(t, h.Netns); got != before {
						return fmt.Errorf("the host is\n%s\nwant\n%s", got, before)
					}
					return nil
				}))
			}
		})
	}
}

// A pod reaches itself through the port of its host, with the bridge's packets in iptables.
func TestAPodReachesItselfThroughItsHostPort(t *testing.T) {
	theirs(t, "portmap")
	needed(t, "iptables")
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	must(t, h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	_ = h.Do(func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0) }) // where the kernel has it
	e := newEngine(t, h, "1.0.0", "", `,{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`)
	rt := runtimeConf("c1", pod.Path(), map[string]any{"portMappings": []map[string]any{{"hostPort": 7, "containerPort": 7, "protocol": "udp"}}})
	_, err := e.add(rt)
	must(t, err)
	must(t, pod.Echo())
	if gateway := netip.MustParseAddr("10.5.1.1"); !reaches(t, pod, gateway) {
		t.Errorf("the pod does not reach itself through %s", gateway)
	}
	must(t, e.del(rt))
}
