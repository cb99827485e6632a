package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// measure is something that is measured on a way, by the second unless its name says else.
type measure struct {
	names   []string
	measure func(way) ([]float64, error)
}

func measures() []measure {
	return []measure{
		{[]string{"Mbit", "cpu-ns-a-byte"}, throughput},
		{[]string{"tcp-round-trips"}, func(w way) ([]float64, error) { return roundTrips(w, "tcp") }},
		{[]string{"udp-round-trips"}, func(w way) ([]float64, error) { return roundTrips(w, "udp") }},
		{[]string{"connections"}, connections},
	}
}

func names() []string {
	var all []string
	for _, m := range measures() {
		all = append(all, m.names...)
	}
	return all
}

// Ports of what is served at the far end: iperf3's own is 5201.
const (
	echoAt  = 7001
	greetAt = 7002 // takes connections and ends them
)

// serve answers at the far end of a way until the benchmark ends.
func serve(b *testing.B, w way) {
	iperf := exec.Command("iperf3", "--server", "--bind", w.at.String())
	check(b, w.to.Do(iperf.Start))
	b.Cleanup(func() { _ = errors.Join(iperf.Process.Kill(), iperf.Wait()) })
	var packets *net.UDPConn
	var echo, greet *net.TCPListener
	check(b, w.to.Do(func() (err error) {
		if packets, err = net.ListenUDP("udp", &net.UDPAddr{IP: w.at.AsSlice(), Port: echoAt}); err != nil {
			return err
		}
		if echo, err = net.ListenTCP("tcp", &net.TCPAddr{IP: w.at.AsSlice(), Port: echoAt}); err != nil {
			return err
		}
		greet, err = net.ListenTCP("tcp", &net.TCPAddr{IP: w.at.AsSlice(), Port: greetAt})
		return err
	}))
	var all sync.WaitGroup
	stop := make(chan struct{})
	b.Cleanup(func() {
		close(stop)
		_ = errors.Join(echo.Close(), greet.Close())
		all.Wait()
	})
	all.Go(func() { echoPackets(packets, stop) })
	all.Go(func() { accept(echo, func(c *net.TCPConn) { _ = blocking(c, farEnd, echoBytes) }) })
	all.Go(func() { accept(greet, func(c *net.TCPConn) { _ = c.Close() }) })
	check(b, lab.Eventually("iperf3 answers", func() error {
		return w.from.Do(func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(w.at.String(), "5201"), time.Second)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}))
}

func accept(l *net.TCPListener, each func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		each(c) // one after the other: only one asks
	}
}

// Processors of the two ends: each end has one of its own, as two hosts have, and in all rounds the same.
const (
	nearEnd = 0
	farEnd  = 1
)

// blocking hands a connection's file descriptor to f on a thread of its own, bound to a processor and in blocking mode: what
// Go's poller and the kernel's choice of processors cost would hide what the network does.
func blocking(c interface {
	File() (*os.File, error)
	Close() error
}, end int, f func(fd int) error) error {
	file, err := c.File()
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	defer file.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: a thread that is bound ends with its goroutine
		var processor unix.CPUSet
		processor.Set(end % runtime.NumCPU())
		fd := int(file.Fd())
		patience := unix.NsecToTimeval(int64(oneRound / 2))
		done <- errors.Join(unix.SchedSetaffinity(0, &processor), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience), f(fd))
	}()
	return <-done
}

const message = 64 // bytes that go back and forth

func echoBytes(fd int) error {
	buf := make([]byte, message)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Write(fd, buf[:n]); err != nil {
			return err
		}
	}
}

func echoPackets(c *net.UDPConn, stop <-chan struct{}) {
	_ = blocking(c, farEnd, func(fd int) error {
		buf := make([]byte, message)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			select {
			case <-stop:
				return nil
			default:
			}
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			if err := unix.Sendto(fd, buf[:n], 0, from); err != nil {
				return err
			}
		}
	})
}

// dial connects to the far end.
func (w way) dial(network string, port int) (net.Conn, error) {
	var c net.Conn
	err := w.from.Do(func() (err error) {
		c, err = net.DialTimeout(network, net.JoinHostPort(w.at.String(), strconv.Itoa(port)), lab.Patience)
		return err
	})
	return c, err
}

// roundTrips counts how often a message goes there and back, one after the other.
func roundTrips(w way, network string) ([]float64, error) {
	c, err := w.dial(network, echoAt)
	if err != nil {
		return nil, err
	}
	file, ok := c.(interface {
		File() (*os.File, error)
		Close() error
	})
	if !ok {
		return nil, fmt.Errorf("%s: a connection without a file", network)
	}
	var rate float64
	err = blocking(file, nearEnd, func(fd int) error {
		start, count, lost := time.Now(), uint64(0), 0
		for time.Since(start) < oneRound {
			count++
			switch err := roundTrip(fd, count); {
			case errors.Is(err, unix.EAGAIN) && lost < few:
				lost++ // it has cost much time
			case err != nil:
				return fmt.Errorf("%s by %s: round trip %d: %w", network, w.name, count, err)
			}
		}
		rate = float64(count) / time.Since(start).Seconds()
		return nil
	})
	return []float64{rate}, err
}

// few messages may be lost, or late, in a round.
const few = 3

// roundTrip sends a numbered message and waits for its answer.
func roundTrip(fd int, number uint64) error {
	var sent, got [message]byte
	binary.BigEndian.PutUint64(sent[:], number)
	if _, err := unix.Write(fd, sent[:]); err != nil {
		return err
	}
	for {
		n, err := unix.Read(fd, got[:])
		switch {
		case errors.Is(err, unix.EINTR): // by Go's scheduler
		case err != nil:
			return err
		case n == message && got == sent:
			return nil
		}
	}
}

// connections counts how often a connection is made and ended, one after the other.
func connections(w way) ([]float64, error) {
	var rate float64
	err := w.from.Do(func() error {
		to := &unix.SockaddrInet4{Addr: w.at.As4(), Port: greetAt}
		start, count := time.Now(), 0
		for time.Since(start) < oneRound {
			if err := connection(to); err != nil {
				return fmt.Errorf("%s: after %d connections: %w", w.name, count, err)
			}
			count++
		}
		rate = float64(count) / time.Since(start).Seconds()
		return nil
	})
	return []float64{rate}, err
}

func connection(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), // no port is kept waiting
		unix.Connect(fd, to), unix.Close(fd))
}

// throughput is what iperf3 gets through one TCP connection, in Mbit/s, and what the whole machine spends on it, in
// nanoseconds of processor time a byte.
func throughput(w way) ([]float64, error) {
	before, err := busy()
	if err != nil {
		return nil, err
	}
	text, err := w.from.Output(nil, "iperf3", "--client", w.at.String(), "--json", "--bytes", "400M", "--affinity", fmt.Sprintf("%d,%d", nearEnd, farEnd%runtime.NumCPU()))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	after, err := busy()
	if err != nil {
		return nil, err
	}
	var answer struct {
		End struct {
			SumReceived struct {
				Bytes         float64 `json:"bytes"`
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return nil, err
	}
	sum := answer.End.SumReceived
	return []float64{sum.BitsPerSecond / 1e6, float64((after - before).Nanoseconds()) / sum.Bytes}, nil
}

// busy is how long the machine's processors have worked since it was started.
func busy() (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ, the same on every Linux
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var total time.Duration
	for i, word := range strings.Fields(line)[1:] {
		n, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 && i < 7 { // idle, iowait; steal is another's and guests are counted twice
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}
