package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlayd/overlayd/e2e/lab"
)

// withPaths adds the verbs of stories about what is between hosts: cables, routers, sizes.
func withPaths(verbs map[string]func(*testscript.TestScript, bool, []string)) map[string]func(*testscript.TestScript, bool, []string) {
	maps.Copy(verbs, map[string]func(*testscript.TestScript, bool, []string){
		"router":  verb(2, (*story).router),
		"forward": verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.hosts[a[0]].Forward() }),
		"behind":  verb(3, (*story).behind),
		"cable":   verb(4, (*story).cable),
		"plug":    verb(1, func(s *story, _ *testscript.TestScript, a []string) error { return s.hosts[a[0]].Plug() }),
		"matrix":  verb(0, (*story).matrix),
		"answers": verb(3, (*story).answers),
		"large":   verb(-1, (*story).large),
		"stream":  verb(2, (*story).stream),
		"streams": verb(0, (*story).streaming),
	})
	return verbs
}

// router adds a machine to the underlay that forwards.
func (s *story) router(_ *testscript.TestScript, args []string) (err error) {
	s.hosts[args[0]], err = s.lab.Router(args[0], args[1])
	return err
}

// behind adds a host that is not on the switch but behind a router: router, host, address with its prefix length.
func (s *story) behind(_ *testscript.TestScript, args []string) error {
	addr, err := netip.ParsePrefix(args[2])
	if err != nil {
		return err
	}
	s.hosts[args[1]], err = s.lab.Behind(s.hosts[args[0]], args[1], addr)
	return err
}

// cable connects two machines: machine, device, machine, device.
func (s *story) cable(_ *testscript.TestScript, args []string) error {
	return lab.Cable(s.hosts[args[0]].Netns, args[1], s.hosts[args[2]].Netns, args[3])
}

// matrix sends from every pod and every host with a daemon to every pod, by each family, and makes sure that the pod sees
// an address of the sender's own: no NAT.
func (s *story) matrix(ts *testscript.TestScript, _ []string) error {
	type sender struct {
		*lab.Netns
		own []netip.Addr
	}
	var senders []sender
	for _, name := range slices.Sorted(maps.Keys(s.pods)) {
		senders = append(senders, sender{s.pods[name].Netns, s.pods[name].Addrs})
	}
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		h := s.hosts[name]
		if h.Daemon() == nil {
			continue
		}
		own, err := s.ownAddrs(h)
		if err != nil {
			return err
		}
		senders = append(senders, sender{h.Netns, own})
	}
	asked := 0
	for _, from := range senders {
		for _, to := range s.pods {
			for _, addr := range to.Addrs {
				answer, err := from.Ping(addr)
				if err != nil {
					return err
				}
				if !slices.Contains(from.own, answer.Seen) {
					return fmt.Errorf("%s sees %s as %s, which is none of %s", to.ID, from.Name, answer.Seen, from.own)
				}
				asked++
			}
		}
	}
	if asked == 0 {
		return errors.New("there is no pod")
	}
	ts.Logf("%d answers", asked)
	return nil
}

// ownAddrs are the addresses by which pods may see a host's own processes.
func (s *story) ownAddrs(h *lab.Host) ([]netip.Addr, error) {
	public, err := netip.ParseAddr(h.Addr)
	if err != nil {
		return nil, err
	}
	subnets, err := h.Subnets()
	own := []netip.Addr{public}
	for _, p := range subnets {
		own = append(own, p.Addr(), p.Addr().Next())
	}
	return own, err
}

// answers sends to an address, which must see the sender as the given one.
func (s *story) answers(_ *testscript.TestScript, args []string) error {
	to, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	from, err := s.netns(args[0])
	if err != nil {
		return err
	}
	answer, err := from.Ping(to)
	if err == nil && answer.Seen.String() != args[2] {
		err = fmt.Errorf("%s sees %s as %s", to, args[0], answer.Seen)
	}
	return err
}

// netns is the namespace of whoever has the name.
func (s *story) netns(name string) (*lab.Netns, error) {
	if p, ok := s.pods[name]; ok {
		return p.Netns, nil
	}
	if h, ok := s.hosts[name]; ok {
		return h.Netns, nil
	}
	return nil, fmt.Errorf("nobody is called %s", name)
}

// large sends a packet of so many bytes, which nobody may cut into pieces, to a pod or host. It is answered, or with a
// fourth word the sender is told that so many bytes are the most.
func (s *story) large(_ *testscript.TestScript, args []string) error {
	from, err := s.netns(args[0])
	if err != nil {
		return err
	}
	to, err := s.address(args[1])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	want := "0"
	if len(args) > 3 {
		want = args[3]
	}
	most, err := from.Large(to, size)
	if err == nil && strconv.Itoa(most) != want {
		err = fmt.Errorf("%s: the most is said to be %d bytes (0: it was answered)", from.Name, most)
	}
	return err
}

func (s *story) address(name string) (netip.Addr, error) {
	if p, ok := s.pods[name]; ok {
		return p.Addrs[0], nil
	}
	if h, ok := s.hosts[name]; ok {
		return netip.ParseAddr(h.Addr)
	}
	return netip.Addr{}, fmt.Errorf("nobody is called %s", name)
}

// stream begins a TCP connection from a pod to another, on which much flows.
func (s *story) stream(_ *testscript.TestScript, args []string) error {
	to, ok := s.pods[args[1]]
	if !ok {
		return fmt.Errorf("no pod is called %s", args[1])
	}
	stream, err := s.pods[args[0]].Stream(to.Netns, to.Addrs[0])
	if err == nil {
		s.streams = append(s.streams, stream)
	}
	return err
}

// streaming waits until much more has arrived on each stream: none hangs.
func (s *story) streaming(*testscript.TestScript, []string) error {
	const much = 1 << 20
	for _, stream := range s.streams {
		before, _ := stream.Received()
		if err := lab.Eventually("the stream goes on", func() error {
			now, err := stream.Received()
			if now < before+much {
				return errors.Join(err, fmt.Errorf("%d bytes", now-before))
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
