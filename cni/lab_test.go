package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

func TestMain(m *testing.M) { os.Exit(lab.Test(m.Run)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same compares two texts and shows both.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

// spaces counts namespaces, for their names.
var spaces atomic.Int64

func newSpace(t testing.TB) *lab.Netns {
	t.Helper()
	lab.Need(t)
	n, err := lab.NewNetns("n" + strconv.FormatInt(spaces.Add(1), 10))
	must(t, err)
	t.Cleanup(func() {
		if err := n.Remove(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return n
}

// host is a machine as the plugin sees it: a namespace with an uplink and a bridge, and a node file.
type host struct {
	*lab.Netns
	file string
	node subnet.NodeFile
}

const (
	bridgeName = "ovl0"
	bridgeMAC  = "0a:58:0a:05:01:01"
	mtu        = 1430
)

// newHost makes a host that holds the given subnets.
func newHost(t testing.TB, subnets ...string) *host {
	t.Helper()
	h := &host{Netns: newSpace(t), file: filepath.Join(t.TempDir(), "node.json")}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	h.node = subnet.NodeFile{
		Version: subnet.NodeFileVersion, Node: "h1", Boot: strings.TrimSpace(string(boot)), Deadline: sinceBoot(t) + int64(time.Hour),
		Bridge: bridgeName, MTU: mtu,
	}
	for _, s := range subnets {
		p := netip.MustParsePrefix(s)
		h.node.Networks = append(h.node.Networks, p)
		h.node.Subnets = append(h.node.Subnets, p)
		h.node.Gateways = append(h.node.Gateways, subnet.Gateway(p))
	}
	h.write(t)
	must(t, h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		attrs.HardwareAddr, _ = net.ParseMAC(bridgeMAC)
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		errs := []error{netlink.LinkAdd(bridge), netlink.LinkSetMTU(bridge, mtu), netlink.LinkSetUp(bridge)}
		for i, s := range h.node.Subnets {
			ip := &netlink.Addr{IPNet: netOf(netip.PrefixFrom(h.node.Gateways[i], s.Bits()))}
			if s.Addr().Is6() {
				ip.Flags = unix.IFA_F_NODAD
			}
			errs = append(errs, netlink.AddrAdd(bridge, ip))
		}
		return errors.Join(append(errs, plant("eth0"))...)
	}))
	return h
}

// plant makes a device that is no veth in the namespace of the calling thread: a bridge, which every kernel of a lab has.
func plant(name string, altnames ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l := &netlink.Bridge{LinkAttrs: attrs}
	errs := []error{netlink.LinkAdd(l)}
	for _, n := range altnames {
		errs = append(errs, netlink.LinkAddAltName(l, n))
	}
	return errors.Join(errs...)
}

func sinceBoot(t testing.TB) int64 {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &now))
	return now.Nano()
}

// write brings the node file up to date.
func (h *host) write(t testing.TB) {
	t.Helper()
	must(t, os.WriteFile(h.file, h.node.Text(), 0o644))
}

// call is one execution of the plugin.
type call struct {
	command, container, netns, ifname string
	conf                              string            // standard input
	env                               map[string]string // replaces; an empty value removes
}

// conf is a network configuration for this host with further keys, such as `,"prevResult":{}`.
func (h *host) conf(version, network, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"type":"overlay","nodeFile":%q%s}`, version, network, h.file, more)
}

func (h *host) add(container string, pod *lab.Netns) call {
	return call{command: "ADD", container: container, netns: pod.Path(), ifname: "eth0", conf: h.conf("1.0.0", "net", "")}
}

func (h *host) del(container string, pod *lab.Netns) call {
	c := h.add(container, pod)
	c.command = "DEL"
	return c
}

// answer is what the plugin says: text and, if it failed, the error in it.
type answer struct {
	text string
	err  *types.Error
}

// run executes the plugin on the host. Whatever it answers, it must answer as the spec wants: at most one JSON document
// on standard output, exactly one with an error.
func (h *host) run(c call) (answer, error) {
	env := map[string]string{"CNI_COMMAND": c.command, "CNI_CONTAINERID": c.container, "CNI_NETNS": c.netns, "CNI_IFNAME": c.ifname, "CNI_PATH": "/opt/cni/bin"}
	for k, v := range c.env {
		env[k] = v
	}
	cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
	cmd.Env = []string{}
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.conf), &out, &complaint
	failure := h.Do(cmd.Run)
	var exit *exec.ExitError
	if failure != nil && !errors.As(failure, &exit) {
		return answer{}, failure
	}
	a := answer{text: out.String()}
	documents, dec := 0, json.NewDecoder(bytes.NewReader(out.Bytes()))
	for {
		var document json.RawMessage
		if err := dec.Decode(&document); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return a, fmt.Errorf("standard output is not JSON: %w: %s%s", err, a.text, complaint.String())
		}
		documents++
	}
	if documents > 1 || failure != nil && documents == 0 {
		return a, fmt.Errorf("%d JSON documents on standard output, want one: %s%s", documents, a.text, complaint.String())
	}
	if failure != nil {
		a.err = &types.Error{}
		return a, errors.Join(json.Unmarshal(out.Bytes(), a.err), properError(c, out.Bytes()))
	}
	return a, nil
}

// properError says what the spec would not like about an error.
func properError(c call, text []byte) error {
	var e struct {
		CNIVersion, Msg string
		Code            uint
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return err
	}
	if !slices.Contains(versions(), e.CNIVersion) || e.Msg == "" || e.Code == 0 {
		return fmt.Errorf("%s says %s, without cniVersion, code or msg", c.command, text)
	}
	if e.Code == types.ErrUnknownContainer { // "the runtime need not call DEL": nobody may believe that
		return fmt.Errorf("%s says %s", c.command, text)
	}
	return nil
}

// do executes the plugin, which must succeed, and returns its text.
func (h *host) do(t *testing.T, c call) string {
	t.Helper()
	a, err := h.run(c)
	must(t, err)
	if a.err != nil {
		t.Fatalf("%s %s: code %d: %v", c.command, c.container, a.err.Code, a.err)
	}
	if c.command != "ADD" && a.text != "" {
		t.Errorf("%s %s prints %s, want nothing", c.command, c.container, a.text)
	}
	return a.text
}

// attach is do for an ADD; it returns the result in its newest form.
func (h *host) attach(t *testing.T, c call) *current.Result {
	t.Helper()
	return parsed(t, h.do(t, c))
}

// refuse executes the plugin, which must fail with the code and say all the words.
func (h *host) refuse(t *testing.T, c call, code uint, words ...string) {
	t.Helper()
	a, err := h.run(c)
	must(t, err)
	if a.err == nil {
		t.Fatalf("%s %s works: %s\nwant code %d", c.command, c.container, a.text, code)
	}
	if a.err.Code != code {
		t.Errorf("%s %s: code %d: %v\nwant code %d", c.command, c.container, a.err.Code, a.err, code)
	}
	for _, w := range words {
		if !strings.Contains(a.err.Error(), w) {
			t.Errorf("%s %s says: %s\nwant in it: %s", c.command, c.container, a.err, w)
		}
	}
}

// addrs are the addresses of a result, without prefix lengths.
func addrs(r *current.Result) []netip.Addr {
	var all []netip.Addr
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		all = append(all, a.Unmap())
	}
	return all
}

// linkOf is the name that the host's side must have, now and in all later releases: DEL finds it by nothing else.
func linkOf(network, container, ifname string) string {
	sum := sha256.Sum256([]byte(network + "\x00" + container + "\x00" + ifname))
	return "veth" + fmt.Sprintf("%x", sum)[:11]
}

// text is what a namespace holds besides lo, in iproute2's words.
func text(t *testing.T, n *lab.Netns) string {
	t.Helper()
	for {
		lines, err := listed(n)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // the kernel took something away or put something in meanwhile: what it told may lack rows
		}
		must(t, err)
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
}

// listed is what a namespace holds, as the kernel tells it.
func listed(n *lab.Netns) ([]string, error) {
	var lines []string
	err := n.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		for _, l := range links {
			if l.Attrs().Name == "lo" {
				continue
			}
			line, err := linkText(l, names)
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 0 {
				lines = append(lines, fmt.Sprintf("default via %s dev %s", r.Gw, names[r.LinkIndex]))
			}
		}
		return err
	})
	return lines, err
}

func linkText(l netlink.Link, names map[int]string) (string, error) {
	a := l.Attrs()
	s := fmt.Sprintf("%s %s %s mtu %d", a.Name, l.Type(), a.HardwareAddr, a.MTU)
	if a.Flags&net.FlagUp != 0 {
		s += " up"
	}
	if l.Type() == "veth" && names[a.MasterIndex] != "" {
		s += " master " + names[a.MasterIndex]
		p, err := netlink.LinkGetProtinfo(l)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return "", err
		}
		if err == nil && p.Hairpin {
			s += " hairpin on"
		}
	}
	if a.Alias != "" {
		s += " alias " + a.Alias
	}
	slices.Sort(a.AltNames)
	for _, n := range a.AltNames {
		s += " altname " + n
	}
	ips, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return "", err
	}
	var shown []string
	for _, ip := range ips {
		switch {
		case ip.IP.IsLinkLocalUnicast():
			continue // the kernel's own
		case ip.Flags&unix.IFA_F_TENTATIVE != 0:
			shown = append(shown, " "+ip.IPNet.String()+" tentative")
		default:
			shown = append(shown, " "+ip.IPNet.String())
		}
	}
	slices.Sort(shown)
	return s + strings.Join(shown, ""), nil
}
