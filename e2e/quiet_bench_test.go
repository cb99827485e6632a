package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/e2e/lab"
)

// BenchmarkRest counts what a host that has nothing to do sends to etcd and hears from it, scaled to an hour.
func BenchmarkRest(b *testing.B) {
	lab.Need(b)
	const watched = time.Minute
	l, h := oneHost(b, "rest")
	wire := newWire(b, l, h)
	check(b, h.Start("--etcd-endpoints", wire.url))
	check(b, h.Ready(0))
	for range b.N {
		before, calls := wire.bytes.Load(), rpcs(b, l)
		pauseFor(b, watched)
		hours := watched.Hours()
		b.ReportMetric(float64(wire.bytes.Load()-before)/hours/1000, "kB/h")
		b.ReportMetric(float64(rpcs(b, l)-calls)/hours, "RPCs/h")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkRenewals counts the events that other hosts hear of because one renews its lease, with the shortest lease there
// is, scaled to an hour. Any is one too many.
func BenchmarkRenewals(b *testing.B) {
	lab.Need(b)
	const watched = 20 * time.Second
	l, h := oneHost(b, "renewals")
	store, err := client(l)
	check(b, err)
	defer store.Close()
	check(b, h.Start("--lease-ttl", "5s"))
	check(b, h.Ready(0))
	for range b.N {
		ctx, cancel := context.WithCancel(b.Context())
		var events atomic.Int64
		var watcher sync.WaitGroup
		changes := store.Watch(ctx, below, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-changes
		watcher.Go(func() {
			for answer := range changes {
				events.Add(int64(len(answer.Events)))
			}
		})
		before := calls(b, l, "LeaseKeepAlive")
		pauseFor(b, watched)
		renewed := calls(b, l, "LeaseKeepAlive") - before
		cancel()
		watcher.Wait()
		if renewed == 0 || events.Load() > 0 {
			b.Fatalf("%d renewals made %d events, want some and none", renewed, events.Load())
		}
		b.ReportMetric(float64(renewed)/watched.Hours(), "renewals/h")
		b.ReportMetric(float64(events.Load())/watched.Hours(), "events/h")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkJoin starts a daemon in a network of so many leases, and counts the requests and the bytes until it is ready.
func BenchmarkJoin(b *testing.B) {
	lab.Need(b)
	for i, n := range sizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			l, h := oneHost(b, fmt.Sprintf("j%d", i))
			wire := newWire(b, l, h)
			store, err := client(l)
			check(b, err)
			defer store.Close()
			putLeases(b, store, n)
			before, start := rpcs(b, l), time.Now()
			check(b, h.Start("--etcd-endpoints", wire.url))
			await(b, h, n)
			b.ReportMetric(time.Since(start).Seconds(), "s/ready")
			b.ReportMetric(float64(rpcs(b, l)-before), "RPCs")
			b.ReportMetric(float64(wire.bytes.Load())/1000, "kB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// pauseFor lets time go by in which nothing is to happen.
func pauseFor(b *testing.B, d time.Duration) {
	select {
	case <-b.Context().Done():
	case <-time.After(d):
	}
}

// wire is a port on a host that leads to etcd, and counts what goes through it in both directions.
type wire struct {
	url   string
	bytes atomic.Int64
}

func newWire(b *testing.B, l *lab.Lab, h *lab.Host) *wire {
	var listener net.Listener
	check(b, h.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	w := &wire{url: "http://" + listener.Addr().String()}
	b.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			var far net.Conn
			if err := l.EtcdHost().Do(func() (err error) {
				far, err = net.Dial("tcp", net.JoinHostPort(lab.EtcdAddr, "2379"))
				return err
			}); err != nil {
				_ = near.Close()
				continue
			}
			go w.carry(near, far)
			go w.carry(far, near)
		}
	}()
	return w
}

// carry copies one direction until it ends, and ends the other with it.
func (w *wire) carry(to, from net.Conn) {
	_, _ = io.Copy(counter{to, &w.bytes}, from)
	_ = errors.Join(to.Close(), from.Close())
}

// counter counts what is written.
type counter struct {
	io.Writer
	bytes *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	c.bytes.Add(int64(len(p)))
	return c.Writer.Write(p)
}

// rpcs is how many requests etcd has had so far, of all kinds.
func rpcs(b *testing.B, l *lab.Lab) int { return calls(b, l, "") }

// calls is how many requests of a kind etcd has had, as its own metrics say.
func calls(b *testing.B, l *lab.Lab, method string) int {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, addr string) (conn net.Conn, err error) {
		err = l.EtcdHost().Do(func() error {
			conn, err = net.Dial(network, addr)
			return err
		})
		return conn, err
	}}}
	answer, err := c.Get(lab.EtcdEndpoint + "/metrics")
	check(b, err)
	defer answer.Body.Close()
	total := 0
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "grpc_server_started_total{") || !strings.Contains(line, fmt.Sprintf(`grpc_method="%s`, method)) {
			continue
		}
		n, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		check(b, err)
		total += int(n)
	}
	check(b, lines.Err())
	return total
}
