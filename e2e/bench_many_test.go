package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/e2e/lab"
)

// plain is how many peers are made the plain way, to be compared with.
const plain = 5000

// manyPatience is for networks that are larger than most.
const manyPatience = 2 * time.Minute

// BenchmarkManyPeers starts the daemon in networks of a size that few have, and measures what is done at boot, by an audit
// that finds nothing to do, for one peer that changes, and by a restart, which must write nothing. Programming is a ratio to
// [plain] peers' rows made one by one with plain routes in the same run.
func BenchmarkManyPeers(b *testing.B) {
	lab.Need(b)
	for i, n := range []int{plain, 2 * plain, 4 * plain} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for range b.N {
				measureMany(b, fmt.Sprintf("m%d", i), n)
			}
		})
	}
}

func measureMany(b *testing.B, name string, n int) {
	l, h := oneHost(b, name)
	store, err := client(l)
	check(b, err)
	defer store.Close()
	putLeases(b, store, n)
	bare := bareRows(b, l, plain)

	start := time.Now()
	check(b, h.Start("-v=2"))
	settle(b, h, n)
	boot := time.Since(start)
	program, err := longestPass(h.Daemon().Log())
	check(b, err)
	audit := steadyPass(b, h)
	change := changePeer(b, h, store, n)
	resident, err := residentMiB(h.Daemon().PID())
	check(b, err)

	check(b, h.Stop())
	start = time.Now()
	check(b, h.Start())
	settle(b, h, n)
	again := time.Since(start)
	if s := ask(b, h); s.Kernel.Made != 0 {
		b.Errorf("a restart with nothing to do made %d changes", s.Kernel.Made)
	}
	b.ReportMetric(bare.Seconds(), fmt.Sprintf("s/bare-%d", plain))
	b.ReportMetric(boot.Seconds(), "s/boot")
	b.ReportMetric(program.Seconds(), "s/program")
	b.ReportMetric(program.Seconds()/bare.Seconds(), fmt.Sprintf("program/bare-%d", plain))
	b.ReportMetric(ms(audit), "ms/audit")
	b.ReportMetric(ms(change), "ms/one-change")
	b.ReportMetric(again.Seconds(), "s/restart")
	b.ReportMetric(resident, "MiB-resident")
	b.ReportMetric(0, "ns/op")
}

// settle waits until the daemon has programmed n peers.
func settle(b *testing.B, h *lab.Host, n int) {
	check(b, lab.Within(manyPatience, fmt.Sprintf("%d peers are programmed", n), func() error {
		s, err := askOnce(h)
		if err == nil && (!s.Ready || s.Peers != n) {
			err = fmt.Errorf("ready %v, %d peers", s.Ready, s.Peers)
		}
		return err
	}))
}

var passTook = regexp.MustCompile(`pass: \d+ rows, \d+ changes, (\S+)\n`)

// longestPass is the one in which everything was made.
func longestPass(log string) (longest time.Duration, err error) {
	for _, m := range passTook.FindAllStringSubmatch(log, -1) {
		took, bad := time.ParseDuration(m[1])
		longest, err = max(longest, took), errors.Join(err, bad)
	}
	if longest == 0 {
		err = errors.Join(err, errors.New("the log tells of no pass"))
	}
	return longest, err
}

// steadyPass gives the daemon a reason to look that is none to do anything, and returns how long it looked.
func steadyPass(b *testing.B, h *lab.Host) time.Duration {
	before := ask(b, h).Kernel
	check(b, h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("127.0.0.2/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, a)
	}))
	var now kernelStatus
	check(b, lab.Eventually("a pass", func() error {
		if now = ask(b, h).Kernel; now.Passes == before.Passes {
			return errors.New("none")
		}
		return nil
	}))
	if now.Made != before.Made {
		b.Errorf("a pass with nothing to do made %d changes", now.Made-before.Made)
	}
	return now.Took
}

// changePeer gives a peer another public address, and returns how long it takes until the kernel sends there.
func changePeer(b *testing.B, h *lab.Host, store *clientv3.Client, n int) time.Duration {
	_, _, mac := peer(n / 2)
	moved := netip.AddrFrom4([4]byte{198, 19, 255, 1})
	events := make(chan netlink.NeighUpdate, 64)
	done := make(chan struct{})
	check(b, h.Do(func() error { return netlink.NeighSubscribe(events, done) }))
	defer close(done)
	start := time.Now()
	_, err := store.Do(b.Context(), putPeer(n/2, moved))
	check(b, err)
	deadline := time.After(manyPatience)
	for {
		select {
		case e := <-events:
			if at, ok := netip.AddrFromSlice(e.IP); ok && at.Unmap() == moved && e.HardwareAddr.String() == mac.String() {
				return time.Since(start)
			}
		case <-deadline:
			b.Fatal("the change never got to the kernel")
		}
	}
}
