package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// town is three hosts with pods and a stranger on the same switch. What is attacked is on host1: pods 1 and 2.
type town struct {
	t        *testing.T
	lab      *lab.Lab
	hosts    []*lab.Host
	stranger *lab.Host
	pods     []*lab.Pod // two on host1, one on host2, one on host3
	wires    map[string]*lab.Wire
	sent     int // probes so far
	kicks    int
}

const townNetwork = `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.34.0", "SubnetMax": "10.5.36.0",
	"EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`

// newTown starts with host1 alone and calls alone, if it is given, before the others come.
func newTown(t *testing.T, name string, alone func(*town)) *town {
	l, err := lab.New(name, t.TempDir(), lab.Binaries())
	need(t, err)
	v := &town{t: t, lab: l, wires: map[string]*lab.Wire{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Logs())
		}
		for _, w := range v.wires {
			need(t, w.Close())
		}
		need(t, l.Close())
	})
	need(t, l.Etcd())
	v.stranger, err = l.Host("stranger", "192.0.2.66")
	need(t, err)
	for i, addr := range []string{"192.0.2.7", "192.0.2.8", "192.0.2.9"} {
		h, err := l.Host(fmt.Sprintf("host%d", i+1), addr)
		need(t, err)
		v.hosts = append(v.hosts, h)
	}
	configure(t, v.hosts[0], townNetwork)
	for i, h := range v.hosts {
		need(t, h.Start())
		need(t, h.Ready(i))
		if i == 0 && alone != nil {
			v.pod(0)
			alone(v)
		}
	}
	for _, h := range v.hosts {
		need(t, h.Ready(2))
	}
	for i, on := range []int{0, 0, 1, 2} {
		if i >= len(v.pods) {
			v.pod(on)
		}
	}
	need(t, listed(v.hosts[0], 2))
	return v
}

func (v *town) pod(on int) {
	p, err := v.hosts[on].Pod(fmt.Sprintf("pod%d", len(v.pods)+1))
	need(v.t, err)
	v.pods = append(v.pods, p)
}

// again starts host1 with other flags.
func (v *town) again(flags ...string) {
	h := v.hosts[0]
	need(v.t, h.Stop())
	need(v.t, h.Start(flags...))
	need(v.t, h.Ready(2))
}

// listed waits until antispoof knows the links of so many pods: before that they are not judged.
func listed(h *lab.Host, pods int) error {
	return lab.Eventually("antispoof knows all pods", func() error {
		text, err := h.Output(nil, "nft", "list", "set", "bridge", "overlayd", "ports")
		if n := strings.Count(text, `"veth`); n != pods {
			return errors.Join(err, fmt.Errorf("it knows %d", n))
		}
		return err
	})
}

// wire is a device of a namespace, opened once.
func (v *town) wire(n *lab.Netns, dev string) *lab.Wire {
	key := n.Name + " " + dev
	if v.wires[key] == nil {
		w, err := n.Wire(dev)
		need(v.t, err)
		v.wires[key] = w
	}
	return v.wires[key]
}

// mac is a device's.
func (v *town) mac(n *lab.Netns, dev string) subnet.MAC {
	shown, err := n.Output(nil, "ip", "-o", "link", "show", dev)
	m := regexp.MustCompile(`link/ether (\S+)`).FindStringSubmatch(shown)
	if m == nil {
		need(v.t, errors.Join(err, fmt.Errorf("%s has no MAC", dev)))
	}
	return macOf(m[1])
}

func ip(text string) netip.Addr { return netip.MustParseAddr(text) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// probe is something that must not arrive.
type probe struct {
	name   string
	reason string                  // for which it is dropped
	send   func(mark []byte) error // sends what contains the mark
	at     *lab.Wire               // where it would arrive
	like   func(frame []byte) bool // what arrives there, when it is not the mark that tells
	on     *lab.Host               // whose rules drop it; host1's without
	guards map[string]bool         // guards, or antispoof, with which it is delivered nevertheless
}

// marked matches frames that contain the mark.
func marked(mark []byte) func([]byte) bool {
	return func(frame []byte) bool { return bytes.Contains(frame, mark) }
}

// try sends a probe and waits until it has arrived, or until it is counted as dropped: then none may have arrived.
func (v *town) try(p probe, delivered bool) {
	v.t.Helper()
	v.sent++
	mark := fmt.Appendf(nil, "probe-%04d.", v.sent)
	arrived := marked(mark)
	if p.like != nil {
		arrived = p.like
	}
	on := p.on
	if on == nil {
		on = v.hosts[0]
	}
	before := p.at.In(arrived)
	dropped, err := v.dropped(on, p.reason)
	need(v.t, err)
	need(v.t, p.send(mark))
	err = lab.Eventually(p.name, func() error {
		now, err := v.counter(on, p.reason)
		n := p.at.In(arrived) - before
		switch {
		case err != nil:
			return err
		case delivered && n > 0, !delivered && now > dropped:
			return nil
		}
		return fmt.Errorf("%d arrived, %d were dropped as %s", n, int64(now)-int64(dropped), p.reason)
	})
	if err != nil {
		v.t.Errorf("%v", err)
		return
	}
	if n := p.at.In(arrived) - before; !delivered && n > 0 {
		v.t.Errorf("%s: %d were delivered", p.name, n)
	}
	if now, err := v.dropped(on, p.reason); err != nil || now > dropped == delivered {
		v.t.Errorf("%s: overlayd_dropped_packets_total{reason=%q} was %d and is %d: %v", p.name, p.reason, dropped, now, err)
	}
}

// counter reads a counter of a host's rules as it is now; one that is not there is 0.
func (v *town) counter(h *lab.Host, reason string) (uint64, error) {
	text, err := h.Output(nil, "nft", "list", "counters")
	m := regexp.MustCompile(`counter ` + reason + ` \{\s*(?:comment "[^"]*"\s*)?packets (\d+)`).FindStringSubmatch(text)
	if err != nil || m == nil {
		return 0, err
	}
	return strconv.ParseUint(m[1], 10, 64)
}

// dropped reads what the daemon tells Prometheus, after it has looked: that is at the next event.
func (v *town) dropped(h *lab.Host, reason string) (uint64, error) {
	want, err := v.counter(h, reason)
	if err != nil {
		return 0, err
	}
	v.kicks++
	if _, err := h.Output(nil, "ip", "link", "set", "lo", "txqueuelen", strconv.Itoa(1000+v.kicks)); err != nil {
		return 0, err
	}
	re := regexp.MustCompile(`overlayd_dropped_packets_total\{reason="` + reason + `"\} (\S+)`)
	var told uint64
	err = lab.Eventually("the metric follows the counter", func() error {
		text, err := overSocket(h, "/metrics")
		if err != nil {
			return err
		}
		m := re.FindSubmatch(text)
		if m == nil {
			return fmt.Errorf("there is no %s", re)
		}
		f, err := strconv.ParseFloat(string(m[1]), 64)
		if told = uint64(f); err == nil && told < want {
			err = fmt.Errorf("%d, the rules say %d", told, want)
		}
		return err
	})
	return told, err
}

// pass makes sure that all probes are dropped, or with a guard or switch that lets them in delivered.
func (v *town) pass(mode string, probes []probe) {
	for _, p := range probes {
		v.try(p, p.guards[mode])
	}
}

func modes(names string) map[string]bool {
	all := map[string]bool{}
	for _, n := range strings.Fields(names) {
		all[n] = true
	}
	return all
}
