package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// sizes of the networks that are measured, in peers.
var sizes = []int{100, 1000, 5000}

// BenchmarkPeers programs so many peers that appear in etcd in one go, while the daemon runs and when it starts, and
// prints each time as a ratio to the bare cost: the same peers' rows made one by one with plain routes, in the same run.
func BenchmarkPeers(b *testing.B) {
	lab.Need(b)
	for i, n := range sizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for range b.N {
				measurePeers(b, fmt.Sprintf("b%d", i), n)
			}
		})
	}
}

func measurePeers(b *testing.B, name string, n int) {
	l, h := oneHost(b, name)
	store, err := client(l)
	check(b, err)
	defer store.Close()
	check(b, h.Start())
	check(b, h.Ready(0))

	start := time.Now()
	putLeases(b, store, n)
	written := time.Since(start)
	await(b, h, n)
	running := time.Since(start)

	check(b, h.Stop())
	wipeRows(b, h)
	start = time.Now()
	check(b, h.Start())
	await(b, h, n)
	boot := time.Since(start)
	status := ask(b, h)
	resident, err := residentMiB(h.Daemon().PID())
	check(b, err)

	bare := bareRows(b, l, n)
	ratio := func(d time.Duration) float64 { return d.Seconds() / bare.Seconds() }
	b.ReportMetric(written.Seconds(), "s/written-to-etcd")
	b.ReportMetric(running.Seconds(), "s/running")
	b.ReportMetric(boot.Seconds(), "s/boot")
	b.ReportMetric(bare.Seconds(), "s/bare")
	b.ReportMetric(ratio(running), "running/bare")
	b.ReportMetric(ratio(running-written), "after-last-write/bare")
	b.ReportMetric(ratio(boot), "boot/bare")
	b.ReportMetric(float64(status.Kernel.Took.Microseconds())/1000, "ms/pass")
	b.ReportMetric(resident, "MiB-resident")
	b.ReportMetric(0, "ns/op")
}

// oneHost is a lab with etcd, a network of 10.0.0.0/8 and one host.
func oneHost(b *testing.B, name string) (*lab.Lab, *lab.Host) {
	l, err := lab.New(name, b.TempDir(), lab.Binaries())
	check(b, err)
	b.Cleanup(func() { check(b, l.Close()) })
	check(b, l.Etcd())
	h, err := l.Host("host1", "192.0.2.7")
	check(b, err)
	file := filepath.Join(b.TempDir(), "network.json")
	check(b, os.WriteFile(file, []byte(`{"Network": "10.0.0.0/8"}`), 0o600))
	_, err = h.Overlayd("config", "set", file)
	check(b, err)
	return l, h
}

func check(b testing.TB, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// peer is the i-th made-up host, with its VTEP MAC.
func peer(i int) (netip.Prefix, netip.Addr, subnet.MAC) {
	s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24)
	return s, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), subnet.VTEPMAC(1, fmt.Sprintf("peer%d", i))
}

// putLeases writes n leases in as few transactions as etcd takes.
func putLeases(b *testing.B, c *clientv3.Client, n int) {
	const most = 128 // operations of a transaction: etcd's default limit
	var ops []clientv3.Op
	for i := range n {
		_, ip, _ := peer(i)
		ops = append(ops, putPeer(i, ip))
	}
	for part := range slices.Chunk(ops, most) {
		_, err := c.Txn(context.Background()).Then(part...).Commit()
		check(b, err)
	}
}

// putPeer writes the lease of the i-th made-up host, which is at the given address.
func putPeer(i int, at netip.Addr) clientv3.Op {
	s, _, mac := peer(i)
	key := fmt.Sprintf("/overlayd/network/subnets/%s-%d", s.Addr(), s.Bits())
	return clientv3.OpPut(key, fmt.Sprintf(
		`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"Node":"peer%d"}`, at, mac, i))
}

// status is what the bench reads of a daemon's answer.
type status struct {
	Ready  bool
	Peers  int
	Kernel kernelStatus
}

type kernelStatus struct {
	Took         time.Duration
	Passes, Made int
}

// ask reads the daemon's status over its socket.
func ask(b *testing.B, h *lab.Host) status {
	s, err := askOnce(h)
	check(b, err)
	return s
}

func askOnce(h *lab.Host) (status, error) {
	var s status
	text, err := overSocket(h, "/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}

// await waits until the daemon has programmed n peers.
func await(b *testing.B, h *lab.Host, n int) {
	check(b, lab.Eventually(fmt.Sprintf("%d peers are programmed", n), func() error {
		s, err := askOnce(h)
		if err == nil && (!s.Ready || s.Peers != n) {
			err = fmt.Errorf("ready %v, %d peers", s.Ready, s.Peers)
		}
		return err
	}))
}

// wipeRows takes the devices away, and with them all rows, as a reboot does.
func wipeRows(b *testing.B, h *lab.Host) {
	check(b, h.Do(func() error {
		var errs []error
		for _, name := range []string{"overlay.1", "ovl0"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}))
}

// residentMiB is how much memory a process has.
func residentMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// bareRows makes n peers' rows on a fresh host with the netlink package's own calls, one row a request.
func bareRows(b *testing.B, l *lab.Lab, n int) time.Duration {
	h, err := l.Host("bare", "192.0.2.8")
	check(b, err)
	var took time.Duration
	check(b, h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "overlay.1"
		dev := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, SrcAddr: net.ParseIP(h.Addr)}
		own := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 1, 1, 0), Mask: net.CIDRMask(32, 32)}}
		if err := errors.Join(netlink.LinkAdd(dev), netlink.LinkSetUp(dev), netlink.AddrAdd(dev, own)); err != nil {
			return err
		}
		c, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer c.Close()
		start := time.Now()
		for i := range n {
			if err := barePeer(c, dev.Index, i); err != nil {
				return err
			}
		}
		took = time.Since(start)
		return nil
	}))
	return took
}

func barePeer(c *netlink.Handle, dev, i int) error {
	s, ip, mac := peer(i)
	via, hw := s.Addr().AsSlice(), net.HardwareAddr(mac[:])
	return errors.Join(
		c.NeighSet(&netlink.Neigh{LinkIndex: dev, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: ip.AsSlice(), HardwareAddr: hw}),
		c.NeighSet(&netlink.Neigh{LinkIndex: dev, State: unix.NUD_PERMANENT, IP: via, HardwareAddr: hw}),
		c.RouteAdd(&netlink.Route{LinkIndex: dev, Dst: &net.IPNet{IP: via, Mask: net.CIDRMask(24, 32)}, Gw: via, Flags: int(netlink.FLAG_ONLINK)}),
	)
}

// BenchmarkCNI attaches and detaches 100 pods one after the other, and runs the same binary as often with nothing to do.
func BenchmarkCNI(b *testing.B) {
	lab.Need(b)
	const pods = 100
	_, h := oneHost(b, "cni")
	check(b, h.Start())
	check(b, h.Ready(0))
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "overlay", "type": "overlay", "nodeFile": %q}`, filepath.Join(h.Dir, "run", "node.json"))
	for range b.N {
		var noop, add, del []time.Duration
		var spaces []*lab.Netns
		for i := range pods {
			n, err := lab.NewNetns(fmt.Sprintf("bench%d", i))
			check(b, err)
			spaces = append(spaces, n)
			noop = append(noop, plugin(b, h, conf, "VERSION", n))
			add = append(add, plugin(b, h, conf, "ADD", n))
		}
		for _, n := range spaces {
			del = append(del, plugin(b, h, conf, "DEL", n))
		}
		for _, n := range spaces {
			check(b, n.Remove())
		}
		for name, times := range map[string][]time.Duration{"noop": noop, "add": add, "del": del} {
			slices.Sort(times)
			b.ReportMetric(ms(times[len(times)/2]), "ms/"+name+"-p50")
			b.ReportMetric(ms(times[len(times)*99/100]), "ms/"+name+"-p99")
		}
		b.ReportMetric(ms(add[len(add)/2]-noop[len(noop)/2]), "ms/add-over-noop")
		b.ReportMetric(0, "ns/op")
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// plugin runs the plugin as a runtime does and returns how long that took.
func plugin(b *testing.B, h *lab.Host, conf, verb string, pod *lab.Netns) time.Duration {
	var took time.Duration
	check(b, h.Do(func() error {
		cmd := h.Plugin(conf, "CNI_COMMAND="+verb, "CNI_CONTAINERID="+pod.Name, "CNI_NETNS="+pod.Path(), "CNI_IFNAME=eth0", "CNI_PATH=/")
		start := time.Now()
		text, err := cmd.Output()
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", verb, err, text)
		}
		return nil
	}))
	return took
}
