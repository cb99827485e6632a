package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/subnet"
)

// place is one attachment that may be there.
type place struct{ network, container, ifname string }

func (p place) alias() string { return p.network + "/" + p.container + "/" + p.ifname }

// putPlace makes the host's side of an attachment, with its other end beside it: GC looks at nothing else.
func putPlace(p place, n int) error {
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: linkOf(p.network, p.container, p.ifname)}, PeerName: fmt.Sprint("peer", n)}
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	return netlink.LinkSetAlias(l, p.alias())
}

// aliases are those of all links of the calling thread's namespace.
func aliases() ([]string, error) {
	var all []string
	links, err := netlink.LinkList()
	for _, l := range links {
		if a := l.Attrs().Alias; a != "" {
			all = append(all, a)
		}
	}
	slices.Sort(all)
	return all, err
}

func TestGCKeepsTheGivenListAndOtherNetworks(t *testing.T) {
	t.Parallel()
	h := newHost(t, "10.5.1.0/24")
	places := rapid.Custom(func(r *rapid.T) place {
		return place{
			rapid.SampledFrom([]string{"net", "ne", "net2", "net.x"}).Draw(r, "network"),
			rapid.SampledFrom([]string{"c1", "c2", "c1-c2", "a..b"}).Draw(r, "container"),
			rapid.SampledFrom([]string{"eth0", "eth1"}).Draw(r, "ifname"),
		}
	})
	rapid.Check(t, func(r *rapid.T) {
		there := rapid.SliceOfNDistinct(places, 0, 5, rapid.ID).Draw(r, "there")
		valid := []types.GCAttachment{} // empty is a list too
		var want []string
		for _, p := range there {
			if rapid.Bool().Draw(r, "keep") {
				valid = append(valid, types.GCAttachment{ContainerID: p.container, IfName: p.ifname})
			}
		}
		for _, p := range there {
			if p.network != "net" || slices.Contains(valid, types.GCAttachment{ContainerID: p.container, IfName: p.ifname}) {
				want = append(want, p.alias())
			}
		}
		slices.Sort(want)
		list, err := json.Marshal(valid)
		if err != nil {
			r.Fatal(err)
		}
		err = h.Do(func() error {
			for i, p := range there {
				if err := putPlace(p, i); err != nil {
					return err
				}
			}
			c, err := parseConf(request{input: []byte(h.conf("1.1.0", "net", `,"cni.dev/valid-attachments":`+string(list)))})
			if err == nil {
				err = collect(c, io.Discard)
			}
			if err != nil {
				return err
			}
			got, err := aliases()
			if !slices.Equal(got, want) {
				r.Errorf("there were %v, GC of net with %s leaves %q, want %q", there, list, got, want)
			}
			for _, p := range there {
				_ = withLinkOrNone(linkOf(p.network, p.container, p.ifname), netlink.LinkDel) // for the next round
			}
			return err
		})
		if err != nil {
			r.Fatal(err)
		}
	})
}

// What is not provably an attachment of the network stays, whatever it is called.
func TestGCLeavesWhatIsNotProvablyOurs(t *testing.T) {
	h := newHost(t, "10.5.1.0/24")
	must(t, h.Do(func() error {
		for name, alias := range map[string]string{"veth0000": "net/c1/eth0", "foo": "net/c1", "bar": "net/a/b/c", "web": "net", "veth1111": ""} {
			l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			if err := netlink.LinkSetAlias(l, alias); err != nil {
				return err
			}
		}
		return withLink("eth0", func(l netlink.Link) error { return netlink.LinkSetAlias(l, "net/c1/eth0") })
	}))
	before := text(t, h.Netns)
	h.do(t, call{command: "GC", conf: h.conf("1.1.0", "net", `,"cni.dev/valid-attachments":[]`)})
	same(t, "the host", text(t, h.Netns), before)
}

func TestSTATUSTellsCutOffFromUnserved(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(h *host) error
		more  string
		code  uint
		says  string
	}{
		"fenced":        {func(h *host) error { h.node.Deadline = subnet.DeadlineLost; return nil }, "", codeCutOff, "lease"},
		"no bridge":     {func(h *host) error { return h.Do(dropBridge) }, "", codeCutOff, "bridge ovl0"},
		"bridge down":   {func(h *host) error { return h.Do(func() error { return withLink(bridgeName, netlink.LinkSetDown) }) }, "", codeCutOff, "bridge ovl0"},
		"no bridge set": {func(h *host) error { h.node.Bridge = ""; return nil }, "", codeUnserved, "--bridge none"},
		"no IPAM":       {func(*host) error { return nil }, `,"ipam":{"type":"nobody"}`, types.ErrInternal, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "10.5.1.0/24")
			must(t, test.spoil(h))
			h.write(t)
			h.refuse(t, call{command: "STATUS", conf: h.conf("1.1.0", "net", test.more)}, test.code, test.says)
		})
	}
}

func TestSTATUSIsFast(t *testing.T) {
	h := newHost(t, "10.5.1.0/24")
	must(t, h.Do(func() error {
		for i := range 100 {
			if err := putPlace(place{"net", fmt.Sprint("c", i), "eth0"}, i); err != nil {
				return err
			}
		}
		return nil
	}))
	var took []time.Duration
	for range 11 {
		start := time.Now()
		h.do(t, call{command: "STATUS", conf: h.conf("1.1.0", "net", "")})
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("STATUS with 100 pods takes %s (median of %d)", took[len(took)/2], len(took)) // aim: 10 ms, not asserted
}
