package runtimes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/overlayd/overlayd/e2e/lab"
)

// criNetwork has both families, and room for [podsEach] pods on each host.
const criNetwork = `{"Network": "10.5.0.0/16", "SubnetLen": 28, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`

const podsEach = 13

// One containerd on each of two hosts does what the kubelet asks for. Whatever a claim is about, its pods leave nothing.
func TestPodsOfTheCRIAreOnTheNetwork(t *testing.T) {
	t.Parallel()
	needContainerd(t)
	hosts, archive := network(t, "cri", criNetwork, 2), webArchive(t)
	one, two := newKubelet(t, hosts[0], archive), newKubelet(t, hosts[1], archive)
	for _, claim := range []struct {
		name string
		test func(t *testing.T, one, two *kubelet)
	}{
		{"the network is ready when the daemon has written its list", claimReady},
		{"pods of two hosts see each other's own address", claimTalk},
		{"a host port leads to its pod until that stops", claimHostPort},
		{"bandwidth is limited until the pod stops", claimBandwidth},
		{"a pod is stopped twice and then removed without a namespace", claimStopTwice},
		{"pods outlive a killed daemon and a killed containerd", claimKills},
		{"a pod is removed although containerd was killed while the plugin attached it", claimCutOff},
		{"without a node file pods are refused in the plugin's words", claimNoNodeFile},
		{"as many pods at once as there are addresses", claimFullSubnet},
	} {
		ok := t.Run(claim.name, func(t *testing.T) {
			t.Cleanup(func() { // when its pods have been removed
				one.clean(t)
				two.clean(t)
			})
			claim.test(t, one, two)
		})
		if !ok {
			return // the hosts are not what the next claim expects
		}
	}
}

func claimReady(t *testing.T, one, two *kubelet) {
	for _, k := range []*kubelet{one, two} {
		if err := k.ready(); !errors.Is(err, errNetwork) {
			t.Errorf("%s before there is a list: %v, want: %v", k.ID, err, errNetwork)
		}
		if _, err := k.run("early"); err == nil || !strings.Contains(err.Error(), "cni plugin not initialized") {
			t.Errorf("a pod before there is a list: %v", err)
		}
		k.install(t)
		check(t, lab.Eventually("the network of "+k.ID+" is ready", k.ready))
	}
	check(t, errors.Join(one.Ready(1), two.Ready(1)))
	check(t, errors.Join(one.sweep(1), two.sweep(1))) // what containerd could not take down again: there was no DEL to call
}

func claimTalk(t *testing.T, one, two *kubelet) {
	pods := []*sandbox{one.mustRun(t, "a"), two.mustRun(t, "b")}
	for _, p := range pods {
		subnets, err := p.on.Subnets()
		check(t, err)
		if len(p.addrs) != 2 || !subnets[0].Contains(p.addrs[0]) || !subnets[1].Contains(p.addrs[1]) {
			t.Fatalf("the pod on %s has %v, want an address of each of %v", p.on.ID, p.addrs, subnets)
		}
		p.start(t, web()...)
	}
	for i, p := range pods {
		other := pods[1-i]
		for _, a := range other.addrs {
			_, err := p.exec("ping", "-c", "1", "-W", "10", a.String())
			check(t, err)
		}
		p.seen(t, other)
	}
}

// seen makes sure that the web server of another pod sees this one's own addresses.
func (s *sandbox) seen(t *testing.T, by *sandbox) {
	t.Helper()
	for i, a := range by.addrs {
		check(t, lab.Eventually("a page", func() error { // the server may be starting
			got, err := s.exec(fetch(a, 80)...)
			if err == nil && sender(got) != s.addrs[i] {
				t.Errorf("%s sees %q, want %s", a, got, s.addrs[i])
			}
			return err
		}))
	}
}

// sender reads the address that a web server saw.
func sender(text string) netip.Addr {
	a, _ := netip.ParseAddr(strings.Trim(strings.TrimSpace(text), "[]")) // the zero Addr is nobody's
	return a.Unmap()
}

// mapped leads port 8080 of the host to port 80 of the pod.
func mapped(c *cri.PodSandboxConfig) {
	c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8080}}
}

func claimHostPort(t *testing.T, one, two *kubelet) {
	get := func() (netip.Addr, error) {
		command := fetch(netip.MustParseAddr(one.Addr), 8080)
		text, err := two.Output(nil, command[0], command[1:]...)
		return sender(text), err
	}
	refused := func(when string) {
		t.Helper()
		if a, err := get(); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s the pod, the host port answers %s: %v, want: refused", when, a, err)
		}
	}
	refused("before")
	p := one.mustRun(t, "mapped", mapped)
	p.start(t, web()...)
	check(t, lab.Eventually("a page", func() error {
		from, err := get()
		if want := netip.MustParseAddr(two.Addr); err == nil && from != want {
			t.Errorf("the pod sees %s, want %s", from, want)
		}
		return err
	}))
	if got := one.kinds(t); got != "cached cgroup link namespace process rule" {
		t.Errorf("the pod leaves %s while it runs: what is seen gone later was never looked at", got)
	}
	check(t, p.stop())
	refused("after")
	if got := one.kinds(t); strings.Contains(got, "rule") || strings.Contains(got, "link") || strings.Contains(got, "cached") {
		t.Errorf("the stopped pod leaves %s", got)
	}
}

func claimBandwidth(t *testing.T, one, _ *kubelet) {
	p := one.mustRun(t, "limited", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
	})
	links, err := one.podLinks()
	check(t, err)
	rates := map[string]uint64{} // in bytes a second, by kind of device
	check(t, one.Do(func() error {
		for _, l := range links {
			all, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range all {
				if tbf, ok := q.(*netlink.Tbf); ok {
					rates[l.Type()] = tbf.Rate
				}
			}
		}
		return nil
	}))
	if got, want := fmt.Sprint(rates), "map[ifb:2000000 veth:1000000]"; got != want {
		t.Errorf("the rates are %s, want %s", got, want)
	}
	check(t, p.stop())
	if got := one.kinds(t); strings.Contains(got, "link") {
		t.Errorf("the stopped pod leaves %s", got)
	}
}

func claimStopTwice(t *testing.T, one, _ *kubelet) {
	calls := one.record(t)
	p := one.mustRun(t, "stopped")
	check(t, p.stop())
	if got := one.kinds(t); strings.Contains(got, "link") {
		t.Errorf("the stopped pod leaves %s", got)
	}
	check(t, p.stop())
	check(t, p.remove())
	one.clean(t)
	got := calls()
	if len(got) < 3 || !strings.HasPrefix(got[0], "ADD "+p.id+" /") || !strings.HasPrefix(got[1], "DEL "+p.id+" /") {
		t.Fatalf("the plugin was called with\n%s\nwant an ADD and a DEL with a namespace, then DELs", strings.Join(got, "\n"))
	}
	for _, call := range got[2:] {
		if call != "DEL "+p.id+" -" {
			t.Errorf("the plugin was called with %s, want a DEL without a namespace", call)
		}
	}
}

func claimKills(t *testing.T, one, two *kubelet) {
	before, peer := one.mustRun(t, "before", mapped), two.mustRun(t, "peer")
	before.start(t, web()...)
	peer.start(t, web()...)
	check(t, one.Kill())
	during := one.mustRun(t, "during") // the lease holds without its daemon
	during.start(t, web()...)
	one.crash(t)
	one.serve(t)
	for _, p := range []*sandbox{before, during} {
		p.seen(t, peer)
		peer.seen(t, p)
	}
	check(t, before.discard())
	check(t, during.stop())
	one.crash(t)
	one.serve(t)
	one.restart(t)
	check(t, one.Ready(1))
	check(t, during.remove())
	one.clean(t)
	one.mustRun(t, "after").start(t)
}

// claimCutOff kills containerd in the middle of an ADD, which then ends well with nobody to tell.
func claimCutOff(t *testing.T, one, _ *kubelet) {
	dir := t.TempDir()
	began, proceed := filepath.Join(dir, "began"), filepath.Join(dir, "proceed")
	// The plugin has all of its input before containerd dies.
	one.wrap(t, fmt.Sprintf(`if [ $CNI_COMMAND = ADD ]; then
	cat >%[1]s/input
	: >%[2]s
	until [ -e %[3]s ]; do sleep 0.02; done
	exec <%[1]s/input
fi`, dir, began, proceed))
	outcome := make(chan error, 1)
	go func() {
		_, err := one.run("cut")
		outcome <- err
	}()
	check(t, lab.Eventually("the plugin is called", func() error { return exists(began) }))
	one.crash(t)
	if err := <-outcome; err == nil {
		t.Error("containerd was killed and yet made the pod")
	}
	check(t, os.WriteFile(proceed, nil, 0o644))
	check(t, lab.Eventually("the plugin is done", func() error {
		links, err := one.podLinks()
		if err == nil && (len(links) == 0 || links[0].Attrs().Alias == "") {
			err = fmt.Errorf("the host has %d links of pods, or one half made", len(links))
		}
		return err
	}))
	one.serve(t)
	check(t, one.sweep(1))
	one.clean(t)
}

func claimNoNodeFile(t *testing.T, one, _ *kubelet) {
	check(t, one.Stop())
	node := filepath.Join(one.Dir, "run", "node.json")
	check(t, os.Remove(node))
	check(t, one.ready()) // containerd 1.6 asks for no STATUS: that there is a list is enough for it
	_, err := one.run("refused")
	if want := node + " does not exist: overlayd has no lease yet"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a pod without a node file: %v, want: %s", err, want)
	}
	one.clean(t)
	check(t, one.sweep(0))
	one.restart(t)
	check(t, one.Ready(1))
	one.mustRun(t, "refused")
}

func claimFullSubnet(t *testing.T, one, _ *kubelet) {
	pods := make([]*sandbox, podsEach)
	var all errgroup.Group
	for i := range pods {
		all.Go(func() (err error) {
			if pods[i], err = one.run(fmt.Sprintf("pod%d", i)); err == nil {
				pods[i].endWith(t)
			}
			return err
		})
	}
	check(t, all.Wait())
	holder := map[netip.Addr]string{}
	for _, p := range pods {
		for _, a := range p.addrs {
			if holder[a] != "" {
				t.Errorf("%s and %s both have %s", holder[a], p.config.Metadata.Name, a)
			}
			holder[a] = p.config.Metadata.Name
		}
	}
	if _, err := one.run("more"); err == nil || !strings.Contains(err.Error(), "no free address: all 13 of") {
		t.Errorf("one pod more: %v", err)
	}
	check(t, pods[0].discard())
	again := one.mustRun(t, "more")
	if got, want := fmt.Sprint(again.addrs), fmt.Sprint(pods[0].addrs); got != want {
		t.Errorf("the pod in the place of another has %s, want %s", got, want)
	}
	pods[0] = again
	for _, p := range pods {
		all.Go(p.discard)
	}
	check(t, all.Wait())
}
