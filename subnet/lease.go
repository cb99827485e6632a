// Package subnet knows who may have which part of the pod network: the configuration, leases, the choice of a subnet and
// the node file. It is pure: it reads no clock, file, socket or environment.
package subnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Lease says that a node owns one subnet of each family in use, and how packets reach it.
type Lease struct {
	Node     string       // empty for a host that runs flannel
	Subnet   netip.Prefix // IPv4; the zero Prefix when the family is off
	Subnet6  netip.Prefix // IPv6; likewise
	PublicIP netip.Addr   // where peers send VXLAN to, IPv4 or IPv6
	MAC      MAC          // of the VXLAN device
	Backend  string       // its [Backend]'s type
	Created  int64        // store revision at which the lease came to be: smaller is older
}

// Subnets returns the subnets of the families in use, IPv4 first.
func (l Lease) Subnets() []netip.Prefix {
	subnets := make([]netip.Prefix, 0, 2)
	for _, s := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if s.IsValid() {
			subnets = append(subnets, s)
		}
	}
	return subnets
}

// Owner names the holder: the node, or for a host without a name its public address.
func (l Lease) Owner() string {
	if l.Node != "" {
		return l.Node
	}
	return l.PublicIP.String()
}

// String returns the lease in one line, as logs and errors show it.
func (l Lease) String() string {
	return fmt.Sprintf("%s of %s via %s", joinPrefixes(l.Subnets()), l.Owner(), l.PublicIP)
}

func joinPrefixes(ps []netip.Prefix) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

// Held is a subnet that somebody held in the past: it is given to others last.
type Held struct {
	Subnet   netip.Prefix
	Node     string // the last holder
	Rank     int64  // store revision of the last change of hands: smaller is longer ago
	Released bool   // the holder gave it up on purpose
	Epoch    int64  // how often the subnet has changed hands
}

// Reservation keeps a subnet for a node, whether that has a lease or not. It does not expire.
type Reservation struct {
	Node   string
	Subnet netip.Prefix
}

// Skipped is a record of the store that cannot be used.
type Skipped struct {
	Key     string
	Reason  Reason
	Detail  string         // in words, with the offending value
	Subnets []netip.Prefix // what it would cover: unreadable does not mean free
}

// Reason is the kind of a [Skipped], a word fit for a metric's label.
type Reason string

// The reasons for which a record is skipped.
const (
	ReasonKey      Reason = "key"       // the key is not a subnet
	ReasonValue    Reason = "value"     // the value cannot be read
	ReasonOutside  Reason = "outside"   // not inside the pool
	ReasonOverlap  Reason = "overlap"   // overlaps an older lease
	ReasonMAC      Reason = "mac"       // no unicast MAC, or an older lease has it
	ReasonPublicIP Reason = "public-ip" // not an address packets can be sent to, or an older lease has it
	ReasonNode     Reason = "node"      // an older lease has the node's name
	ReasonConfig   Reason = "config"    // a configuration that hosts with leases cannot follow while they run
)

// Snapshot is the whole network at one revision of the store.
type Snapshot struct {
	Revision int64
	Config   Config
	Leases   []Lease // usable ones, oldest first
	Held     []Held
	Reserved []Reservation
	Skipped  []Skipped
	Missing  []Missing // of Leases, those that the store no longer has: see Settle
	Doubt    bool      // the store is not what it was (wiped, restored): what is missing is not believed to be gone
	Stale    bool      // saved earlier, not the store's: rows may be added for it, none removed
}

// Vet returns the snapshot made of the given records: leases that cannot be used, and of two that clash the younger, move
// to Skipped. It is the only way by which leases from the store reach the data plane.
func Vet(revision int64, c Config, leases []Lease, held []Held, skipped []Skipped) Snapshot {
	s := Snapshot{Revision: revision, Config: c, Held: held, Skipped: slices.Clone(skipped)}
	leases = slices.Clone(leases)
	slices.SortFunc(leases, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(joinPrefixes(a.Subnets()), joinPrefixes(b.Subnets())))
	})
	v := newVetter(c)
	for _, l := range leases {
		if reason, detail := v.admit(l); reason != "" {
			s.Skipped = append(s.Skipped, Skipped{Key: joinPrefixes(l.Subnets()), Reason: reason, Detail: detail, Subnets: l.Subnets()})
			continue
		}
		s.Leases = append(s.Leases, l)
	}
	slices.SortFunc(s.Skipped, func(a, b Skipped) int { return strings.Compare(a.Key, b.Key) })
	return s
}

// Lease returns the node's lease.
func (s Snapshot) Lease(node string) (Lease, bool) {
	i := slices.IndexFunc(s.Leases, func(l Lease) bool { return l.Node == node })
	if i < 0 {
		return Lease{}, false
	}
	return s.Leases[i], true
}

// Admits says whether every lease can stay when the configuration becomes c: nil, or which cannot and why.
func (s Snapshot) Admits(c Config) error {
	if len(s.Leases) == 0 {
		return nil
	}
	if was := s.Config.Backend; was.Type != c.Backend.Type {
		return fmt.Errorf("backend %s cannot become %s while %d hosts have leases", was.Type, c.Backend.Type, len(s.Leases))
	}
	if was := s.Config.Backend; was.VNI != c.Backend.VNI || was.Port != c.Backend.Port {
		return fmt.Errorf("VNI %d and port %d cannot become %d and %d while %d hosts have leases",
			was.VNI, was.Port, c.Backend.VNI, c.Backend.Port, len(s.Leases))
	}
	if skipped := Vet(s.Revision, c, s.Leases, nil, nil).Skipped; len(skipped) > 0 {
		return fmt.Errorf("%d of %d leases cannot stay: %s", len(skipped), len(s.Leases), skipped[0].Detail)
	}
	return nil
}

// Overlapping returns what covers an address of the given subnets: a lease or a record that cannot be used.
func (s Snapshot) Overlapping(subnets ...netip.Prefix) (string, bool) {
	for _, p := range subnets {
		for _, l := range s.Leases {
			if l.Subnet.Overlaps(p) || l.Subnet6.Overlaps(p) {
				return "the lease " + l.String(), true
			}
		}
		for _, k := range s.Skipped {
			if slices.ContainsFunc(k.Subnets, func(q netip.Prefix) bool { return s.Config.holds(q) && q.Overlaps(p) }) {
				return "the record " + k.Key, true
			}
		}
	}
	return "", false
}

// With returns the snapshot in which own is the lease of its node, whatever the store says: a host that holds a claim
// knows that better than a list made before it or while the store was being restored.
func (s Snapshot) With(own Lease) Snapshot {
	leases := make([]Lease, 0, len(s.Leases)+1)
	leases = append(leases, own)
	for _, l := range s.Leases {
		if l.Node != own.Node && l.PublicIP != own.PublicIP && l.MAC != own.MAC && !overlap(l, own) {
			leases = append(leases, l)
		}
	}
	s.Leases = leases
	return s
}

func overlap(a, b Lease) bool {
	return a.Subnet.Overlaps(b.Subnet) || a.Subnet6.Overlaps(b.Subnet6)
}
