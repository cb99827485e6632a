package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

// keys spells the keys. Flannel reads everything under subnets/: what it does not know lies under overlayd/.
type keys struct{ prefix string }

func newKeys(prefix string) (keys, error) {
	if !strings.HasPrefix(prefix, "/") || strings.HasSuffix(prefix, "/") || strings.ContainsAny(prefix, " \t\n") {
		return keys{}, fmt.Errorf("etcd prefix %q: want a path such as /overlayd/network, without a slash at the end", prefix)
	}
	return keys{prefix: prefix}, nil
}

func (k keys) config() string                 { return k.prefix + "/config" }
func (k keys) subnets() string                { return k.prefix + "/subnets/" }
func (k keys) subnet(l subnet.Lease) string   { return k.subnets() + leaseName(l) }
func (k keys) node(node string) string        { return k.prefix + "/overlayd/nodes/" + node }
func (k keys) vtep(ip netip.Addr) string      { return k.prefix + "/overlayd/vteps/" + ip.String() }
func (k keys) alive(node string) string       { return k.prefix + "/overlayd/alive/" + node }
func (k keys) alives() string                 { return k.prefix + "/overlayd/alive/" }
func (k keys) settled() string                { return k.prefix + "/overlayd/settled" }
func (k keys) settling() string               { return k.prefix + "/overlayd/settling" }
func (k keys) reservations() string           { return k.prefix + "/overlayd/reserved/" }
func (k keys) reserved(s netip.Prefix) string { return k.reservations() + prefixName(s) }
func (k keys) histories() string              { return k.prefix + "/overlayd/history/" }
func (k keys) history(s netip.Prefix) string  { return k.histories() + prefixName(s) }

// leaseName is flannel's: 10.5.34.0-24, or with both families 10.5.34.0-24&fd00:5::-64. With IPv6 alone, fd00:5::-64.
func leaseName(l subnet.Lease) string {
	names := make([]string, 0, 2)
	for _, s := range l.Subnets() {
		names = append(names, prefixName(s))
	}
	return strings.Join(names, "&")
}

func prefixName(p netip.Prefix) string { return fmt.Sprintf("%s-%d", p.Addr(), p.Bits()) }

// parseLeaseName is the inverse of leaseName. Only the spelling that leaseName gives is right: of two keys for one subnet
// both would be free when the other is taken.
func parseLeaseName(name string) (subnet.Lease, error) {
	var l subnet.Lease
	for part := range strings.SplitSeq(name, "&") {
		p, err := parsePrefixName(part)
		if err != nil {
			return subnet.Lease{}, err
		}
		if p.Addr().Is4() {
			l.Subnet = p
		} else {
			l.Subnet6 = p
		}
	}
	if leaseName(l) != name {
		return subnet.Lease{}, fmt.Errorf("want it written %s", leaseName(l))
	}
	return l, nil
}

var errNotSubnet = errors.New("not a subnet such as 10.5.34.0-24")

func parsePrefixName(name string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(name, "-")
	p, err := netip.ParsePrefix(addr + "/" + bits)
	if !ok || err != nil || p.Addr().Is4In6() || p.Masked() != p || prefixName(p) != name {
		return netip.Prefix{}, errNotSubnet
	}
	return p, nil
}

// value is a lease as flannel writes it. Flannel ignores Node.
type value struct {
	PublicIP    string       `json:"PublicIP"`
	PublicIPv6  *string      `json:"PublicIPv6"`
	BackendType string       `json:"BackendType"`
	BackendData *backendData `json:"BackendData"`
	Node        string       `json:"Node,omitempty"`
}

type backendData struct {
	VNI     uint32     `json:"VNI"`
	VtepMAC subnet.MAC `json:"VtepMAC"`
}

const (
	no4      = "0.0.0.0"
	maxValue = 4096 // bytes; ours have about 150
)

func encodeLease(l subnet.Lease, vni uint32) string {
	v := value{PublicIP: l.PublicIP.String(), BackendType: l.Backend, Node: l.Node}
	if l.Backend == subnet.BackendVXLAN {
		v.BackendData = &backendData{VNI: vni, VtepMAC: l.MAC}
	}
	if !l.PublicIP.Is4() {
		six := v.PublicIP
		v.PublicIP, v.PublicIPv6 = no4, &six // flannel wants an IPv4 address here and drops every lease otherwise
	}
	return encode(v)
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "" // cannot happen: the types above all have a text form
	}
	return string(text)
}

// decodeLease reads one key under subnets/. Of what it cannot use it says why, and which subnet that covers.
func decodeLease(k keys, c subnet.Config, kv *mvccpb.KeyValue) (subnet.Lease, *subnet.Skipped) {
	name := strings.TrimPrefix(string(kv.Key), k.subnets())
	l, err := parseLeaseName(name)
	if err != nil {
		return l, &subnet.Skipped{Key: clip(name), Reason: subnet.ReasonKey, Detail: err.Error()}
	}
	skip := func(reason subnet.Reason, format string, args ...any) (subnet.Lease, *subnet.Skipped) {
		return l, &subnet.Skipped{Key: name, Reason: reason, Detail: clip(fmt.Sprintf(format, args...)), Subnets: l.Subnets()}
	}
	if len(kv.Value) > maxValue {
		return skip(subnet.ReasonValue, "%d bytes, more than %d", len(kv.Value), maxValue)
	}
	var v value
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		return skip(subnet.ReasonValue, "%v", err)
	}
	if v.Node != "" {
		if err := subnet.CheckNode(v.Node); err != nil {
			return skip(subnet.ReasonNode, "%v", err)
		}
	}
	l.Node = v.Node // also of a lease that is of no use: its node can mend it, and the next holder of its address remove it
	ip, is4 := v.PublicIP, true
	if v.PublicIPv6 != nil && (ip == "" || ip == no4) {
		ip, is4 = *v.PublicIPv6, false
	}
	l.PublicIP, err = netip.ParseAddr(ip)
	l.Backend = c.Backend.Type
	if !strings.EqualFold(v.BackendType, l.Backend) || l.Backend == subnet.BackendVXLAN && v.BackendData == nil {
		return skip(subnet.ReasonValue, "backend %q: this network has %s", v.BackendType, l.Backend)
	}
	if v.BackendData == nil {
		v.BackendData = &backendData{}
	}
	if v.BackendData.VNI != 0 && v.BackendData.VNI != c.Backend.VNI {
		return skip(subnet.ReasonValue, "VNI %d: this network has %d", v.BackendData.VNI, c.Backend.VNI)
	}
	if err != nil || l.PublicIP.Is4() != is4 || l.PublicIP.Zone() != "" {
		return skip(subnet.ReasonPublicIP, "public address %q", ip)
	}
	l.MAC, l.Created = v.BackendData.VtepMAC, kv.CreateRevision
	return l, nil
}

// clip bounds what a stranger's text may add to a status or a log.
func clip(text string) string {
	const most = 200
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}

// past is the record of a subnet's last holder. It outlives leases.
type past struct {
	Node     string `json:"node"`
	Epoch    int64  `json:"epoch"`              // times the subnet changed hands; never decreases
	Released bool   `json:"released,omitempty"` // given up on purpose
}

func decodeHistory(k keys, kv *mvccpb.KeyValue) (subnet.Held, bool) {
	p, err := parsePrefixName(strings.TrimPrefix(string(kv.Key), k.histories()))
	if err != nil {
		return subnet.Held{}, false
	}
	var v past
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		v = past{} // somebody held it: who, is lost
	}
	return subnet.Held{Subnet: p, Node: v.Node, Rank: kv.ModRevision, Released: v.Released, Epoch: v.Epoch}, true
}

// reservation is what is kept under reserved/. It hangs on no etcd lease.
type reservation struct {
	Node string `json:"node"`
}

// presence is what a running daemon keeps under alive/: it tells two hosts of one name apart.
type presence struct {
	Boot     string     `json:"boot"`
	PublicIP netip.Addr `json:"publicIP"`
}
