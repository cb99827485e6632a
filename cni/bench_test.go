package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/e2e/lab"
)

// racer is a plugin that is measured: this one, or Debian's bridge with host-local.
type racer struct {
	name, program, conf, path string
}

// stripped builds the program as a release has it.
func stripped(b *testing.B) string {
	b.Helper()
	program := filepath.Join(b.TempDir(), "overlay")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, text)
	}
	return program
}

func racers(b testing.TB, h *host, program string) (ours, peers racer) {
	b.Helper()
	return racer{"ours", program, h.conf("1.0.0", "net", ""), "/nowhere"},
		racer{"peers", filepath.Join(theirs(b, "bridge", hostLocal), "bridge"), fmt.Sprintf(`{"cniVersion":"1.0.0","name":"peer","type":"bridge","bridge":"br9","isGateway":true,`+
			`"isDefaultGateway":true,"hairpinMode":true,"mtu":1430,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.6.0.0/22"}]]}}`, b.TempDir()), debian}
}

// take runs one verb as a runtime does and says how long that took. The strace flags go before it.
func (r racer) take(b testing.TB, h *host, verb, container, netns string, strace ...string) time.Duration {
	b.Helper()
	args := append(strace, r.program)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + r.path, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = strings.NewReader(r.conf)
	var took time.Duration
	err := h.Do(func() error {
		start := time.Now()
		text, err := cmd.Output()
		took = time.Since(start)
		if err != nil {
			err = fmt.Errorf("%s of %s: %w: %s", verb, r.name, err, text)
		}
		return err
	})
	if err != nil {
		b.Error(err)
	}
	return took
}

// quantiles sorts and returns the median and the 99th of a hundred, in milliseconds.
func quantiles(all []time.Duration) (p50, p99 float64) {
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return ms(all[len(all)/2]), ms(all[len(all)*99/100])
}

// BenchmarkPlugin attaches and detaches 150 pods, one after the other and ten at a time, with 0, 100 and 200 there already, in
// turn with the reference plugins, and counts processes and system calls.
func BenchmarkPlugin(b *testing.B) {
	lab.Need(b)
	program := stripped(b)
	for _, there := range []int{0, 100, 200} {
		b.Run(fmt.Sprintf("pods=%d", there), func(b *testing.B) {
			for range b.N {
				race(b, program, there)
			}
		})
	}
	b.Run("start", func(b *testing.B) {
		for range b.N {
			start(b, program)
		}
	})
}

// rounds of a race. Those who run take turns on fresh hosts, and nothing of the one's pods is left when the other runs: the
// reference plugin's have IPv6, and tell each other of themselves for many seconds.
const rounds = 3

func race(b *testing.B, program string, there int) {
	took := map[string][]time.Duration{}
	for range rounds {
		for _, name := range []string{"ours", "peers"} {
			s := &scope{TB: b}
			oneRun(s, name, program, there, took)
			s.end()
		}
	}
	for name, all := range took {
		p50, p99 := quantiles(all)
		b.ReportMetric(p50, "ms/"+name+"-p50")
		b.ReportMetric(p99, "ms/"+name+"-p99")
	}
	for _, what := range []string{"add", "del", "add-by-10", "del-by-10"} {
		own, _ := quantiles(took["ours-"+what])
		other, _ := quantiles(took["peers-"+what])
		b.ReportMetric(own/other, what+"/peers")
	}
	b.ReportMetric(0, "ns/op")
}

// scope is a part of a benchmark that cleans up at its own end.
type scope struct {
	testing.TB
	undo []func()
}

func (s *scope) Cleanup(f func()) { s.undo = append(s.undo, f) }

func (s *scope) end() {
	for _, f := range slices.Backward(s.undo) {
		f()
	}
}

// oneRun attaches and detaches pods with one of the plugins, and adds what that took.
func oneRun(b testing.TB, name, program string, there int, took map[string][]time.Duration) {
	h := newHost(b, "10.5.0.0/22")
	r, peers := racers(b, h, program)
	if name == peers.name {
		r = peers
	}
	for i := range there {
		r.take(b, h, "ADD", fmt.Sprint("there", i), newSpace(b).Path())
	}
	const pods = 50
	var spaces []*lab.Netns
	for range pods {
		spaces = append(spaces, newSpace(b))
	}
	for _, verb := range []string{"ADD", "DEL"} {
		what := r.name + "-" + strings.ToLower(verb)
		for i, n := range spaces {
			took[what] = append(took[what], r.take(b, h, verb, fmt.Sprint("c", i), n.Path()))
		}
	}
	for _, verb := range []string{"ADD", "DEL"} {
		what := r.name + "-" + strings.ToLower(verb) + "-by-10"
		took[what] = append(took[what], crowd(b, h, r, verb, spaces)...)
	}
}

// crowd runs a verb for all pods, ten at a time.
func crowd(b testing.TB, h *host, r racer, verb string, spaces []*lab.Netns) []time.Duration {
	const atOnce = 10
	all, next := make([]time.Duration, len(spaces)), make(chan int)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				all[i] = r.take(b, h, verb, fmt.Sprint("c", i), spaces[i].Path())
			}
		})
	}
	for i := range spaces {
		next <- i
	}
	close(next)
	workers.Wait()
	return all
}

var straceTotal = regexp.MustCompile(`(?m)^100\.00 +\S+ +(?:\S+ +)?(\d+) +\d* *total`)

// start counts what an ADD and a DEL cost in processes and system calls, and what VERSION and STATUS take.
func start(b *testing.B, program string) {
	h := newHost(b, "10.5.1.0/24")
	ours, peers := racers(b, h, program)
	for _, r := range []racer{ours, peers} {
		n := newSpace(b)
		for _, verb := range []string{"ADD", "DEL"} {
			calls, execs := filepath.Join(b.TempDir(), "calls"), filepath.Join(b.TempDir(), "execs")
			r.take(b, h, verb, "c1", n.Path(), needed(b, "strace"), "-f", "-c", "-o", calls)
			if verb == "ADD" {
				r.take(b, h, "DEL", "c1", n.Path())
			} else {
				r.take(b, h, "ADD", "c1", n.Path())
			}
			r.take(b, h, verb, "c1", n.Path(), needed(b, "strace"), "-f", "-o", execs, "-e", "trace=execve")
			text, err := os.ReadFile(calls)
			must(b, err)
			m := straceTotal.FindSubmatch(text)
			if m == nil {
				b.Fatalf("strace says\n%s", text)
			}
			total, err := strconv.Atoi(string(m[1]))
			must(b, err)
			b.ReportMetric(float64(total), "syscalls/"+r.name+"-"+strings.ToLower(verb))
			text, err = os.ReadFile(execs)
			must(b, err)
			b.ReportMetric(float64(strings.Count(string(text), "execve(")-strings.Count(string(text), "ENOENT")), "execve/"+r.name+"-"+strings.ToLower(verb))
		}
	}
	status := racer{"status", program, h.conf("1.1.0", "net", ""), "/"}
	var version, answers []time.Duration
	for range 100 {
		version = append(version, ours.take(b, h, "VERSION", "", ""))
		answers = append(answers, status.take(b, h, "STATUS", "", ""))
	}
	p50, p99 := quantiles(version)
	b.ReportMetric(p50, "ms/version-p50")
	b.ReportMetric(p99, "ms/version-p99")
	p50, p99 = quantiles(answers)
	b.ReportMetric(p50, "ms/status-p50")
	b.ReportMetric(p99, "ms/status-p99")
	s, err := os.Stat(program)
	must(b, err)
	b.ReportMetric(float64(s.Size())/1e6, "MB-stripped")
	b.ReportMetric(0, "ns/op")
}
