// Package e2e tells stories of the whole system: real daemons, the real plugin and a real etcd on hosts made of network
// namespaces. The stories are in testdata, for admins to read; here are the verbs they use.
package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlayd/overlayd/e2e/lab"
)

// probePatience is that of "soon": what only a half-minute probe notices, or a lease put back after that (40 s), and a margin.
const probePatience = 45 * time.Second

func TestMain(m *testing.M) { os.Exit(lab.Test(m.Run)) }

// story is one script's lab.
type story struct {
	lab   *lab.Lab
	hosts map[string]*lab.Host
	pods  map[string]*lab.Pod
	flows []*lab.Flow

	streams []*lab.Stream
}

type storyKey struct{}

func TestStories(t *testing.T) {
	lab.Need(t)
	var number atomic.Int32 // stories are told at the same time
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			dir := filepath.Join(env.WorkDir, ".lab")
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			l, err := lab.New(fmt.Sprintf("s%d", number.Add(1)), dir, lab.Binaries())
			if err != nil {
				return err
			}
			s := &story{lab: l, hosts: map[string]*lab.Host{}, pods: map[string]*lab.Pod{}}
			env.Values[storyKey{}] = s
			env.Defer(func() { s.end(env.T()) })
			return nil
		},
		Cmds: withPaths(withFaults(map[string]func(*testscript.TestScript, bool, []string){
			"etcd":       verb(-1, (*story).etcd),
			"store":      verb(0, (*story).store),
			"network":    verb(-1, (*story).network),
			"host":       verb(2, func(s *story, _ *testscript.TestScript, a []string) error { return s.host(a[0], a[1]) }),
			"start":      verb(-1, (*story).start),
			"quit":       verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.hosts[a[0]].Stop() }),
			"crash":      verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.hosts[a[0]].Kill() }),
			"ready":      verb(2, (*story).ready),
			"log":        verb(2, (*story).log),
			"pod":        verb(2, (*story).pod),
			"detach":     verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.pods[a[0]].Detach() }),
			"attach":     verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.pods[a[0]].Attach() }),
			"reach":      verb(-1, (*story).reach),
			"traffic":    verb(2, (*story).traffic),
			"lost":       verb(1, (*story).lost),
			"cut":        verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.lab.Cut(a[0]) }),
			"heal":       verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.lab.Heal(a[0]) }),
			"on":         on,
			"eventually": func(ts *testscript.TestScript, neg bool, a []string) { eventually(ts, neg, lab.Patience, a) },
			"soon":       func(ts *testscript.TestScript, neg bool, a []string) { eventually(ts, neg, probePatience, a) },
		})),
	})
}

// verb makes a script's command that must succeed, or with ! must fail. want is its number of words, -1 any.
func verb(want int, f func(*story, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if want >= 0 && len(args) != want {
			ts.Fatalf("want %d words, got %q", want, args)
		}
		err := f(storyOf(ts), ts, args)
		switch {
		case neg && err == nil:
			ts.Fatalf("it worked")
		case neg:
			ts.Logf("as it should: %v", err)
		case err != nil:
			ts.Fatalf("%v", err)
		}
	}
}

func storyOf(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

// end shows the logs of a story that failed and takes the lab down.
func (s *story) end(t testscript.T) {
	for _, f := range s.flows {
		f.Stop()
	}
	for _, f := range s.streams {
		f.Stop()
	}
	if failed, ok := t.(interface{ Failed() bool }); ok && failed.Failed() {
		t.Log(s.lab.Logs())
	}
	if err := s.lab.Close(); err != nil {
		t.Log("take the lab down: ", err)
	}
}

// etcd starts the server, or with "stop" stops it, or with "wipe" starts it anew with nothing; "backup" copies its data, and
// "restore" starts it anew with that copy.
func (s *story) etcd(_ *testscript.TestScript, args []string) error {
	switch strings.Join(args, " ") {
	case "":
		return s.lab.Etcd()
	case "stop":
		return s.lab.StopEtcd()
	case "wipe":
		return s.lab.WipeEtcd()
	case "backup":
		return s.lab.BackUpEtcd()
	case "restore":
		return s.lab.RestoreEtcd()
	}
	return fmt.Errorf("etcd %s: want stop, wipe, backup, restore or nothing", args)
}

// network configures the network from a file, as an admin on the given host.
func (s *story) network(ts *testscript.TestScript, args []string) error {
	_, err := s.hosts[args[0]].Overlayd("config", "set", ts.MkAbs(args[1]))
	return err
}

func (s *story) host(name, addr string) (err error) {
	s.hosts[name], err = s.lab.Host(name, addr)
	return err
}

// start starts the daemon of a host with further flags.
func (s *story) start(_ *testscript.TestScript, args []string) error {
	return s.hosts[args[0]].Start(args[1:]...)
}

// ready waits until a host is ready and knows so many peers.
func (s *story) ready(_ *testscript.TestScript, args []string) error {
	peers, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return s.hosts[args[0]].Ready(peers)
}

// log waits until a daemon has logged a text.
func (s *story) log(_ *testscript.TestScript, args []string) error {
	return lab.Eventually(fmt.Sprintf("%s logs %q", args[0], args[1]), func() error {
		if text := s.hosts[args[0]].Daemon().Log(); !strings.Contains(text, args[1]) {
			return fmt.Errorf("its log is\n%s", text)
		}
		return nil
	})
}

func (s *story) pod(_ *testscript.TestScript, args []string) (err error) {
	s.pods[args[1]], err = s.hosts[args[0]].Pod(args[1])
	return err
}

// reach sends from a pod or host to pods, and makes sure that they see its own address: no NAT.
func (s *story) reach(_ *testscript.TestScript, args []string) error {
	for _, name := range args[1:] {
		to := s.pods[name]
		for _, addr := range to.Addrs {
			from, own, err := s.sender(args[0], to, addr)
			if err != nil {
				return err
			}
			answer, err := from.Ping(addr)
			if err != nil {
				return err
			}
			if answer.Seen != own {
				return fmt.Errorf("%s sees %s as %s, not as %s", name, args[0], answer.Seen, own)
			}
		}
	}
	return nil
}

// sender returns whoever has the name, and the address by which the pod must see it.
func (s *story) sender(name string, to *lab.Pod, at netip.Addr) (*lab.Netns, netip.Addr, error) {
	if p, ok := s.pods[name]; ok {
		for _, a := range p.Addrs {
			if a.Is4() == at.Is4() {
				return p.Netns, a, nil
			}
		}
		return nil, netip.Addr{}, fmt.Errorf("%s has no address of the family of %s", name, at)
	}
	h, ok := s.hosts[name]
	if !ok {
		return nil, netip.Addr{}, fmt.Errorf("nobody is called %s", name)
	}
	subnets, err := h.Subnets()
	for _, p := range subnets {
		if p.Addr().Is4() == at.Is4() {
			own := p.Addr()
			if to.Host == h {
				own = own.Next() // by way of the bridge, whose address is the next
			}
			return h.Netns, own, nil
		}
	}
	return nil, netip.Addr{}, errors.Join(err, fmt.Errorf("%s has no subnet of the family of %s", name, at))
}

// traffic begins a flow from a pod to another.
func (s *story) traffic(_ *testscript.TestScript, args []string) error {
	f, err := s.pods[args[0]].Traffic(s.pods[args[1]].Addrs[0])
	if err == nil {
		s.flows = append(s.flows, f)
	}
	return err
}

// lost ends all flows; they may have lost so many datagrams in all, and must have sent some.
func (s *story) lost(ts *testscript.TestScript, args []string) error {
	most, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	total := 0
	for _, f := range s.flows {
		sent, lost := f.Stop()
		ts.Logf("sent %d, lost %d", sent, lost)
		total += len(lost)
		if sent == 0 {
			return errors.New("nothing was sent")
		}
	}
	s.flows = nil
	if total > most {
		return fmt.Errorf("%d datagrams were lost", total)
	}
	return nil
}

// output runs a program on a host or in a pod.
func (s *story) output(name string, args []string) (string, error) {
	if p, ok := s.pods[name]; ok {
		return p.Output(nil, args[0], args[1:]...)
	}
	if name == "etcd" {
		return s.lab.EtcdHost().Output(nil, args[0], args[1:]...)
	}
	h, ok := s.hosts[name]
	if !ok {
		return "", fmt.Errorf("nobody is called %s", name)
	}
	if args[0] == "overlayd" {
		return h.Overlayd(args[1:]...)
	}
	return h.Output(h.Env(), args[0], args[1:]...)
}

// on runs a program on a host or in a pod; stdout and stderr can be looked at afterwards.
func on(ts *testscript.TestScript, neg bool, args []string) {
	text, err := storyOf(ts).output(args[0], args[1:])
	fmt.Fprint(ts.Stdout(), text)
	if err != nil {
		fmt.Fprint(ts.Stderr(), err)
	}
	if neg != (err != nil) {
		ts.Fatalf("%s: %v", text, err)
	}
}

// eventually runs a program on a host or in a pod until its output matches, or with ! does not match any more. "soon" has
// the patience that a half-minute probe needs.
func eventually(ts *testscript.TestScript, neg bool, patience time.Duration, args []string) {
	s := storyOf(ts)
	re := regexp.MustCompile("(?m)" + args[1])
	ts.Check(lab.Within(patience, strings.Join(args, " "), func() error {
		text, err := s.output(args[0], args[2:])
		if re.MatchString(text) != neg && (err == nil || text != "") { // overlayd status also speaks when it fails
			return nil
		}
		return errors.Join(err, fmt.Errorf("it prints\n%s", text))
	}))
}
