package subnet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
)

// Config is the network's configuration, the same for every host: a valid one, made by [ParseConfig].
type Config struct {
	IPv4, IPv6 Pool // at least one is valid; the zero Pool means that the family is off
	Backend    Backend
}

// Pools returns the pools in use, IPv4 first.
func (c Config) Pools() []Pool {
	var pools []Pool
	for _, p := range []Pool{c.IPv4, c.IPv6} {
		if p.IsValid() {
			pools = append(pools, p)
		}
	}
	return pools
}

// Fits says whether l has a subnet as the pools are cut now, one of each family in use.
func (c Config) Fits(l Lease) bool {
	for _, s := range l.Subnets() {
		if _, ok := c.pool(s).Index(s); !ok {
			return false
		}
	}
	return len(l.Subnets()) == len(c.Pools())
}

// Backend says how packets travel between hosts.
type Backend struct {
	Type          string // one of the Backend constants
	VNI           uint32 // VXLAN network identifier, 1 to 16777215 (RFC 7348 section 5)
	Port          uint16 // UDP destination port; 8472, as Linux and flannel have it, rather than IANA's 4789
	DirectRouting bool   // reach peers on our own link by a plain route instead of VXLAN
	MTU           int    // largest packet on the underlay in bytes, headers of VXLAN included; 0 takes the uplink's
}

// Types of a [Backend].
const (
	BackendVXLAN  = "vxlan"   // in VXLAN, or with DirectRouting plainly to peers on our link
	BackendHostGW = "host-gw" // plainly, and only to peers on our link
	BackendAlloc  = "alloc"   // the admin sees to it: only leases and bridges are made
)

const (
	defaultVNI  = 1
	defaultPort = 8472
	maxVNI      = 1<<24 - 1
	minMTU      = 1280 + 70 // IPv6 goes off below 1280 bytes (RFC 8200 section 5); 70 is VXLAN over IPv6
	maxMTU      = 65535

	// maxIndexBits bounds a pool to 16,777,216 subnets: each has a nexthop object whose id is 32 bits wide.
	maxIndexBits = 24
)

// rawConfig is the file as flannel documents it. Unknown keys are flannel's or a later version's: left alone.
type rawConfig struct {
	Network       string
	SubnetLen     int
	SubnetMin     string
	SubnetMax     string
	IPv6Network   string
	IPv6SubnetLen int
	IPv6SubnetMin string
	IPv6SubnetMax string
	EnableIPv4    *bool
	EnableIPv6    *bool
	Backend       struct {
		Type          string
		VNI           *int
		Port          *int
		DirectRouting bool
		MTU           int
	}
}

// ParseConfig reads the network configuration in flannel's JSON. Defaults are flannel's; unknown keys are tolerated. An
// error names the key, its value and what is allowed.
func ParseConfig(text []byte) (Config, error) {
	raw, err := decodeConfig(text)
	if err != nil {
		return Config{}, err
	}
	var c Config
	if raw.EnableIPv4 == nil || *raw.EnableIPv4 {
		c.IPv4, err = ipv4.pool(raw.Network, raw.SubnetLen, raw.SubnetMin, raw.SubnetMax)
		if err != nil {
			return Config{}, err
		}
	}
	if raw.EnableIPv6 != nil && *raw.EnableIPv6 {
		c.IPv6, err = ipv6.pool(raw.IPv6Network, raw.IPv6SubnetLen, raw.IPv6SubnetMin, raw.IPv6SubnetMax)
		if err != nil {
			return Config{}, err
		}
	}
	if len(c.Pools()) == 0 {
		return Config{}, refuse("EnableIPv4", false, "true, unless EnableIPv6 is true")
	}
	if c.Backend, err = raw.backend(); err != nil {
		return Config{}, err
	}
	return c, nil
}

func decodeConfig(text []byte) (rawConfig, error) {
	var raw rawConfig
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&raw); err != nil {
		return raw, fmt.Errorf("network config: %w", describeJSON(err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return raw, fmt.Errorf("network config: text after the JSON object at byte %d: give one object", dec.InputOffset())
	}
	return raw, nil
}

// describeJSON puts encoding/json's typed errors into the words of the config file.
func describeJSON(err error) error {
	switch e := err.(type) { //nolint:errorlint // straight from the decoder, never wrapped
	case *json.UnmarshalTypeError:
		if e.Field == "" {
			return fmt.Errorf("a JSON %s: want an object such as {\"Network\": \"10.5.0.0/16\"}", e.Value)
		}
		want := map[reflect.Kind]string{reflect.Int: "a whole number", reflect.Bool: "true or false", reflect.String: "text", reflect.Struct: "an object"}
		return fmt.Errorf("%s: a JSON %s at byte %d: want %s", e.Field, e.Value, e.Offset, cmp.Or(want[e.Type.Kind()], e.Type.String()))
	case *json.SyntaxError:
		return fmt.Errorf("not JSON at byte %d: %w", e.Offset, err)
	}
	return fmt.Errorf("not JSON: %w", err)
}

func (raw rawConfig) backend() (Backend, error) {
	r := raw.Backend
	b := Backend{Type: cmp.Or(strings.ToLower(r.Type), BackendVXLAN), VNI: defaultVNI, Port: defaultPort, DirectRouting: r.DirectRouting, MTU: r.MTU}
	if b.Type != BackendVXLAN && b.Type != BackendHostGW && b.Type != BackendAlloc {
		return b, refuse("Backend.Type", r.Type, `"vxlan", "host-gw" or "alloc"`)
	}
	if r.VNI != nil {
		if *r.VNI < 1 || *r.VNI > maxVNI {
			return b, refuse("Backend.VNI", *r.VNI, fmt.Sprintf("1 to %d", maxVNI))
		}
		b.VNI = uint32(*r.VNI)
	}
	if r.Port != nil {
		if *r.Port < 1 || *r.Port > 65535 {
			return b, refuse("Backend.Port", *r.Port, "1 to 65535")
		}
		b.Port = uint16(*r.Port)
	}
	if b.MTU != 0 && (b.MTU < minMTU || b.MTU > maxMTU) {
		return b, refuse("Backend.MTU", b.MTU, fmt.Sprintf("0 (the uplink's) or %d to %d", minMTU, maxMTU))
	}
	return b, nil
}

// family is what differs between IPv4 and IPv6 in the file.
type family struct {
	prefix     string // of the keys
	is4        bool
	bits       int
	defaultLen int
	maxLen     int // room for the VTEP, the bridge and one pod
}

var (
	ipv4 = family{prefix: "", is4: true, bits: 32, defaultLen: 24, maxLen: 30}
	ipv6 = family{prefix: "IPv6", is4: false, bits: 128, defaultLen: 64, maxLen: 126}
)

func (f family) name() string {
	if f.is4 {
		return "IPv4"
	}
	return "IPv6"
}

func (f family) pool(network string, length int, first, last string) (Pool, error) {
	if network == "" {
		return Pool{}, fmt.Errorf("network config: %sNetwork is missing: give an %s prefix such as %s", f.prefix, f.name(), f.example())
	}
	n, err := netip.ParsePrefix(network)
	if err != nil || n.Addr().Is4() != f.is4 || n.Bits() < 1 {
		return Pool{}, refuse(f.prefix+"Network", network, "an "+f.name()+" prefix such as "+f.example())
	}
	if n != n.Masked() {
		return Pool{}, refuse(f.prefix+"Network", network, "a prefix without host bits: "+n.Masked().String())
	}
	if bad := unusable(n); bad != "" {
		return Pool{}, refuse(f.prefix+"Network", network, "unicast addresses, not "+bad)
	}
	p := Pool{Network: n, SubnetLen: length}
	if length == 0 {
		p.SubnetLen = max(f.defaultLen, n.Bits()+2)
	}
	low, high := n.Bits()+2, min(f.maxLen, n.Bits()+maxIndexBits)
	if low > f.maxLen {
		return Pool{}, refuse(f.prefix+"Network", network, fmt.Sprintf("/%d or larger", f.maxLen-2))
	}
	if p.SubnetLen < low || p.SubnetLen > high {
		return Pool{}, refuse(f.prefix+"SubnetLen", p.SubnetLen, fmt.Sprintf("%d to %d for %s", low, high, n))
	}
	// flannel leaves the first subnet out: 10.5.0.0/16 and 10.5.0.0/24 are too easily mistaken for each other.
	p.Min, p.Max = p.At(1).Addr(), p.At(p.size()-1).Addr()
	if p.Min, err = f.bound("SubnetMin", first, p, p.Min); err != nil {
		return Pool{}, err
	}
	if p.Max, err = f.bound("SubnetMax", last, p, p.Max); err != nil {
		return Pool{}, err
	}
	if p.Max.Less(p.Min) {
		return Pool{}, refuse(f.prefix+"SubnetMax", p.Max, "an address not below "+f.prefix+"SubnetMin "+p.Min.String())
	}
	return p, nil
}

func (f family) example() string {
	if f.is4 {
		return "10.5.0.0/16"
	}
	return "fd00:5::/48"
}

func (f family) bound(key, text string, p Pool, preset netip.Addr) (netip.Addr, error) {
	if text == "" {
		return preset, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !p.Network.Contains(a) || netip.PrefixFrom(a, p.SubnetLen).Masked().Addr() != a {
		return a, refuse(f.prefix+key, text, fmt.Sprintf("the first address of a /%d inside %s, such as %s", p.SubnetLen, p.Network, preset))
	}
	return a, nil
}

// unusable names the special range (RFC 6890) that p touches, "" when there is none.
func unusable(p netip.Prefix) string {
	special := []struct{ prefix, name string }{
		{"0.0.0.0/8", "this network"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"}, {"240.0.0.0/4", "reserved"},
		{"::/8", "reserved"}, {"fe80::/10", "link-local"}, {"ff00::/8", "multicast"},
	}
	for _, s := range special {
		if p.Overlaps(netip.MustParsePrefix(s.prefix)) {
			return s.prefix + " (" + s.name + ")"
		}
	}
	return ""
}

func refuse(key string, value any, allowed string) error {
	return fmt.Errorf("network config: %s: %v: allowed is %s", key, value, allowed)
}
