package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// NodeFileVersion is the schema that this version writes and reads.
const NodeFileVersion = 1

// DeadlineLost is the deadline of a node file whose subnet somebody else has: long past.
const DeadlineLost = 1

// NodeFile is what the daemon tells the CNI plugin about this host, as <run-dir>/node.json.
type NodeFile struct {
	Version  int            `json:"version"`
	Node     string         `json:"node"`
	Boot     string         `json:"boot"`            // /proc/sys/kernel/random/boot_id of the boot in which it was written
	Deadline int64          `json:"deadline"`        // end of the lease in CLOCK_BOOTTIME nanoseconds; 0: unknown, from a saved snapshot
	Networks []netip.Prefix `json:"networks"`        // the pools, IPv4 first
	Subnets  []netip.Prefix `json:"subnets"`         // this host's part of each
	Gateways []netip.Addr   `json:"gateways"`        // the bridge's address in each
	VXLAN    string         `json:"vxlan,omitempty"` // name of the VXLAN device
	Bridge   string         `json:"bridge"`          // empty: the admin brings their own
	MTU      int            `json:"mtu"`             // of a pod's interface, in bytes
}

// NewNodeFile describes lease l under configuration c. The remaining fields are the caller's.
func NewNodeFile(c Config, l Lease) NodeFile {
	f := NodeFile{Version: NodeFileVersion, Node: l.Node}
	for _, s := range l.Subnets() {
		f.Networks = append(f.Networks, c.pool(s).Network)
		f.Subnets = append(f.Subnets, s)
		f.Gateways = append(f.Gateways, Gateway(s))
	}
	return f
}

// Gateway is the bridge's address in a host's subnet: the first after the VTEP's.
func Gateway(s netip.Prefix) netip.Addr { return Addr(s, 1) }

// VTEP is the VXLAN device's address in a host's subnet: the subnet's own, as flannel has it.
func VTEP(s netip.Prefix) netip.Addr { return s.Addr() }

const (
	// FirstPod is the offset of the first pod's address in a host's subnet.
	FirstPod = 2

	// mostPods bounds a large subnet: a bridge has at most 1,023 ports.
	mostPods = 1 << 14
)

// Room is for how many pods a host's subnets have addresses.
func Room(subnets []netip.Prefix) uint64 {
	room := uint64(mostPods)
	for _, s := range subnets {
		if hostBits := s.Addr().BitLen() - s.Bits(); hostBits < 16 {
			room = min(room, 1<<hostBits-FirstPod-1) // the last is IPv4's broadcast address
		}
	}
	return room
}

// ErrNodeFile says that a node file cannot be used; the text says why.
var ErrNodeFile = errors.New("node file")

// ParseNodeFile reads what [NodeFile.Text] wrote. Errors are [ErrNodeFile].
func ParseNodeFile(text []byte) (NodeFile, error) {
	var f NodeFile
	if err := json.Unmarshal(text, &f); err != nil {
		return f, fmt.Errorf("%w: not readable: %w", ErrNodeFile, err)
	}
	if f.Version != NodeFileVersion {
		return f, fmt.Errorf("%w: version %d: this program reads version %d: install overlayd and its plugin from one release",
			ErrNodeFile, f.Version, NodeFileVersion)
	}
	if len(f.Subnets) == 0 || len(f.Gateways) != len(f.Subnets) || len(f.Networks) != len(f.Subnets) {
		return f, fmt.Errorf("%w: %d networks, %d subnets and %d gateways: want one of each for every family",
			ErrNodeFile, len(f.Networks), len(f.Subnets), len(f.Gateways))
	}
	for i, s := range f.Subnets {
		if s.IsValid() && s.Bits() > familyOf(s).maxLen {
			return f, fmt.Errorf("%w: subnet %s: want one of length %d or less, with room for pods", ErrNodeFile, s, familyOf(s).maxLen)
		}
		if !s.IsValid() || !s.Contains(f.Gateways[i]) {
			return f, fmt.Errorf("%w: gateway %s is outside the subnet %s", ErrNodeFile, f.Gateways[i], s)
		}
	}
	if f.MTU < 0 || f.MTU > maxMTU {
		return f, fmt.Errorf("%w: MTU %d: want 0 to %d", ErrNodeFile, f.MTU, maxMTU)
	}
	return f, nil
}

// Text returns the file's content.
func (f NodeFile) Text() []byte {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil // cannot happen: every field has a text form
	}
	return append(text, '\n')
}

// Usable says whether pods can be attached at the given moment of the given boot: nil, or an [ErrNodeFile] with the cause.
// now is CLOCK_BOOTTIME in nanoseconds.
func (f NodeFile) Usable(boot string, now int64) error {
	if f.Boot != boot {
		return fmt.Errorf("%w: written before the last reboot", ErrNodeFile)
	}
	if f.Deadline != 0 && now > f.Deadline {
		return fmt.Errorf("%w: the lease of %s ended %d s ago", ErrNodeFile, joinPrefixes(f.Subnets), (now-f.Deadline)/1e9)
	}
	return nil
}

// SubnetEnv returns the same in flannel's words, for tools that read /run/flannel/subnet.env. The subnets are given as
// the gateways with their prefix length, as docker's --bip wants it. The daemon masquerades nothing itself.
func (f NodeFile) SubnetEnv() []byte {
	var b strings.Builder
	for i, s := range f.Subnets {
		family := ""
		if !s.Addr().Is4() {
			family = "IPV6_"
		}
		fmt.Fprintf(&b, "FLANNEL_%sNETWORK=%s\n", family, f.Networks[i])
		fmt.Fprintf(&b, "FLANNEL_%sSUBNET=%s\n", family, netip.PrefixFrom(f.Gateways[i], s.Bits()))
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", f.MTU)
	return []byte(b.String())
}

// AltName spells an address as the alternative name of the link that holds it (ip-link(8), altname). A name holds no
// colons.
func AltName(a netip.Addr) string { return strings.ReplaceAll(a.Unmap().String(), ":", "-") }

// ParseAltName is the inverse of [AltName]; false for other names.
func ParseAltName(name string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.ReplaceAll(name, "-", ":"))
	return a, err == nil && AltName(a) == name
}
