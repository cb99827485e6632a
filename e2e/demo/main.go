// Command demo shows the whole of overlayd on one machine in a few seconds: three hosts, made of network namespaces, with
// two pods each, a real etcd, the real daemon and the real plugin. It needs nothing installed and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/e2e/lab"
)

func main() { os.Exit(lab.Run(demo)) }

// network is the whole configuration an admin writes.
const network = `{"Network": "10.5.0.0/16"}`

// demo runs inside the lab.
func demo() int {
	binaries := flag.String("binaries", "bin", "directory with overlayd and overlay")
	keep := flag.Bool("keep", false, "stay up until interrupted")
	flag.Parse()
	p := printer{color: isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""}
	if err := lab.Available(); err != nil {
		p.failed("make a lab", err, "")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	dir, err := filepath.Abs(*binaries)
	if err != nil {
		p.failed("find the programs", err, "")
		return 1
	}
	s := show{printer: p, binaries: dir, began: time.Now()}
	err = s.run(ctx)
	if errors.Is(err, context.Canceled) {
		fmt.Println("interrupted: all is gone")
		return interruptedCode
	}
	if err != nil {
		logs := ""
		if s.lab != nil {
			logs = s.lab.Logs()
		}
		p.failed(s.step, err, logs)
		return 1
	}
	if *keep {
		s.invite()
		<-ctx.Done()
		fmt.Println("\nall is gone")
	}
	return 0
}

const interruptedCode = 130 // as a shell has it

// show is one run of the demo.
type show struct {
	printer
	binaries string
	began    time.Time
	step     string // what is being tried
	lab      *lab.Lab
	pods     []*lab.Pod
}

const (
	hosts       = 3
	podsPerHost = 2
)

// run builds the network and shows it. The context ends it between two steps.
func (s *show) run(ctx context.Context) error {
	s.title("Building three hosts on one switch")
	steps := []struct {
		name string
		act  func() error
	}{
		{"a switch in a namespace of its own", s.makeSwitch},
		{"etcd at " + lab.EtcdEndpoint, func() error { return s.lab.Etcd() }},
		{"three hosts with eth0 on the switch", s.makeHosts},
		{"overlayd config set: " + network, s.configure},
		{"overlayd on each host, until each is ready and knows the others", s.startDaemons},
		{"two pods on each host, attached by the CNI plugin", s.makePods},
		{"topology", s.topology},
		{"leases", s.leases},
		{"every pod and every host to every pod", s.matrix},
		{"what the kernel of host1 holds", s.kernel},
		{"a packet on the underlay", s.packet},
	}
	const building = 6 // the steps before there is something to see
	for i, step := range steps {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.step = step.name
		if err := step.act(); err != nil {
			return errors.Join(err, ctx.Err()) // ^C also ends what the step was waiting for
		}
		if i < building {
			s.done(step.name, time.Since(s.began))
		}
	}
	return nil
}

func (s *show) makeSwitch() (err error) {
	s.lab, err = lab.New("", lab.TempDir, s.binaries)
	return err
}

func (s *show) makeHosts() error {
	const first = 7
	for i := range hosts {
		if _, err := s.lab.Host(fmt.Sprintf("host%d", i+1), fmt.Sprintf("192.0.2.%d", first+i)); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) configure() error {
	file := filepath.Join(lab.TempDir, "network.json")
	if err := os.WriteFile(file, []byte(network), 0o644); err != nil {
		return err
	}
	_, err := s.lab.Hosts()[0].Overlayd("config", "set", file)
	return err
}

func (s *show) startDaemons() error {
	for _, h := range s.lab.Hosts() {
		if err := h.Start(); err != nil {
			return err
		}
	}
	for _, h := range s.lab.Hosts() {
		if err := h.Ready(hosts - 1); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) makePods() error {
	for _, h := range s.lab.Hosts() {
		for range podsPerHost {
			p, err := h.Pod(fmt.Sprintf("pod%d", len(s.pods)+1))
			if err != nil {
				return err
			}
			s.pods = append(s.pods, p)
		}
	}
	return nil
}

// invite prints what to try from another shell. All of it works while the demo stays up.
func (s *show) invite() {
	proc := "/proc/" + lab.Pid()
	enter := "nsenter"
	if lab.Rootless() {
		enter = "nsenter --preserve-credentials --user=" + proc + "/ns/user"
	}
	in := func(name string) string { return enter + " --net=" + proc + "/root/run/netns/" + name }
	h, p, q := s.lab.Hosts()[0], s.pods[0], s.pods[podsPerHost]
	s.title("It stays up until you press ^C. Try from another shell:")
	for _, line := range []string{
		in(h.ID) + " ip route",
		in(h.ID) + " bridge fdb show dev overlay.1",
		in(h.ID) + " tcpdump -n -i " + p.Addrs[0].String(),
		in(p.ID) + " ping " + q.Addrs[0].String(),
	} {
		if tool := strings.Fields(line)[strings.Count(enter, " ")+2]; installed(tool) {
			s.command(line)
		}
	}
	s.line("%s", "A shell on host1, for overlayd status, leases, plan and pods, and to break things by hand:")
	s.command(in(h.ID) + " --mount=" + proc + "/ns/mnt bash --rcfile " + h.Profile())
	s.line("%s", "What its daemon says meanwhile:")
	s.command("tail -f " + proc + "/root" + filepath.Join(h.Dir, "overlayd.log"))
}

func installed(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}
