package e2e

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// What other people have on host1: it must be the same, byte for byte, after every act.
const (
	foreignRows = `
ip link add foreign0 type bridge
ip link set foreign0 address 02:00:00:00:0f:01
ip link set foreign0 up
ip link add foreign3 type veth peer name foreign4
ip link set foreign3 up
ip link set foreign4 master foreign0 up
ip addr add 203.0.113.1/24 dev foreign0
ip route add 198.51.100.0/25 via 203.0.113.9 dev foreign0 proto static
ip route add 10.6.0.0/16 via 203.0.113.9 dev foreign0 proto bird metric 50
ip route add 198.51.100.128/25 via 203.0.113.8 dev foreign0 table 77
ip rule add from 203.0.113.0/24 lookup 77 pref 7700
ip neigh add 203.0.113.9 lladdr 02:00:00:00:0f:09 nud permanent dev foreign0
ip nexthop add id 77 via 203.0.113.9 dev foreign0 proto static
bridge fdb add 02:00:00:00:0f:09 dev foreign0 self permanent
nft -f {dir}/foreign.nft
`
	foreignTable = `table inet foreign {
	set friends {
		type ipv4_addr
		elements = { 203.0.113.7, 203.0.113.9 }
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 203.0.113.66 drop
		ip saddr @friends accept
	}
}
table ip overlay {
}
table ip overlayd {
	chain guard {
		accept
	}
}
`
	// moreRows are made beside ours while the daemon runs, even inside the network.
	moreRows = `
ip route add 10.5.200.0/24 via 203.0.113.9 dev foreign0 proto static
ip route add 10.5.35.0/24 via 203.0.113.9 dev foreign0 proto static metric 7
ip rule add to 10.5.0.0/16 lookup 77 pref 7701
ip nexthop add id 142000099 via 203.0.113.9 dev foreign0 proto static
`
	// foreignSeen shows them, by few processes: it is looked at after every act.
	foreignSeen = `
printf 'link show foreign0\nlink show foreign3\naddr show foreign0 scope global\nroute show table all\nrule\nnexthop show\nneigh show nud permanent dev foreign0\n' | ip -d -o -batch -
bridge fdb show dev foreign0
nft 'list table inet foreign; list table ip overlay; list table ip overlayd'
`
)

// plant makes other people's rows on host1.
func (s *scene) plant() {
	for name, text := range map[string]string{"foreign.nft": foreignTable, "more": moreRows} {
		need(s.t, os.WriteFile(s.host.Path(name), []byte(text), 0o600))
	}
	_, err := s.shell(foreignRows)
	need(s.t, err)
	s.planted = s.foreign()
}

// notForeign are lines about what is ours or the kernel's, and words that change by themselves.
var (
	notForeign = regexp.MustCompile(`(?m)^.*(proto (overlayd|142|kernel)|table local|192\.88\.77|(33:33|01:00):).*\n`)
	ticking    = regexp.MustCompile(` (tcn|topology_change|hello|gc)_timer +[0-9.]+`)
)

// foreign prints what is on host1 and not ours.
func (s *scene) foreign() string {
	text, err := s.host.Output(nil, "sh", "-ec", foreignSeen)
	if err != nil {
		return err.Error()
	}
	return ticking.ReplaceAllString(notForeign.ReplaceAllString(text, ""), "")
}

// plantMore adds rows of other people's: from then on those must stay too.
func (s *scene) plantMore() error {
	_, err := s.shell("sh {dir}/more")
	s.planted = s.foreign()
	return err
}

// unlike names the lines in which two texts differ.
func unlike(was, is string) error {
	var errs []error
	for _, side := range [][3]string{{"-", was, is}, {"+", is, was}} {
		for line := range strings.Lines(side[1]) {
			if !strings.Contains(side[2], line) {
				errs = append(errs, fmt.Errorf("%s %s", side[0], strings.TrimSpace(line)))
			}
		}
	}
	if len(errs) == 0 && was != is {
		errs = append(errs, errors.New("the same lines in another order"))
	}
	return errors.Join(errs...)
}
