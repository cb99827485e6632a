package etcd

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

const testPrefix = "/overlayd/network"

func TestParseLeaseNameTakesItsOwnSpelling(t *testing.T) {
	for _, name := range []string{
		"10.5.34.0-24", "10.5.34.0-30", "0.0.0.0-0", "10.5.34.0-24&fd00:5::-64", "fd00:5::-64", "fd00:5:0:22::-126", "fd00:5:1::1:0:0-96",
	} {
		l, err := parseLeaseName(name)
		if err != nil || leaseName(l) != name {
			t.Errorf("%q: %v, spelled back %q", name, err, leaseName(l))
		}
	}
}

func TestParseLeaseNameRefusesEveryOtherSpelling(t *testing.T) {
	for _, c := range []struct{ why, name string }{
		{"nothing", ""},
		{"no subnet", "config"},
		{"no length", "10.5.2.0"},
		{"empty length", "10.5.2.0-"},
		{"no address", "-24"},
		{"only a dash", "-"},
		{"only an ampersand", "&"},
		{"zero-padded byte", "10.5.02.0-24"},
		{"zero-padded length", "10.5.2.0-024"},
		{"host bits", "10.5.2.1-24"},
		{"host bits in IPv6", "fd00:5::1-64"},
		{"length out of range", "10.5.2.0-33"},
		{"IPv6 length out of range", "fd00:5::-129"},
		{"signed length", "10.5.2.0-+24"},
		{"negative length", "10.5.2.0--24"},
		{"a slash", "10.5.2.0/24"},
		{"a slash and a dash", "10.5.2.0/24-24"},
		{"text behind", "10.5.2.0-24x"},
		{"a key below", "10.5.2.0-24/x"},
		{"a slash behind", "10.5.2.0-24/"},
		{"space before", " 10.5.2.0-24"},
		{"newline behind", "10.5.2.0-24\n"},
		{"NUL behind", "10.5.2.0-24\x00"},
		{"three bytes", "10.5.2-24"},
		{"second part empty", "10.5.2.0-24&"},
		{"first part empty", "&fd00:5::-64"},
		{"IPv6 first", "fd00:5::-64&10.5.2.0-24"},
		{"IPv4 twice", "10.5.2.0-24&10.5.3.0-24"},
		{"the same twice", "10.5.2.0-24&10.5.2.0-24"},
		{"IPv6 twice", "fd00:5::-64&fd00:5:0:1::-64"},
		{"three parts", "10.5.2.0-24&fd00:5::-64&fd00:5:0:1::-64"},
		{"capitals", "FD00:5::-64"},
		{"zero-padded group", "fd00:05::-64"},
		{"zeros not shortened", "fd00:5:0:0::-64"},
		{"zone", "fe80::%eth0-64"},
		{"IPv4 in IPv6", "::ffff:10.5.2.0-120"},
		{"invalid UTF-8", "10.5.2.0-24\xff"},
	} {
		if l, err := parseLeaseName(c.name); err == nil {
			t.Errorf("%s: %q is taken for %s", c.why, c.name, leaseName(l))
		}
	}
}

func TestAHistoryRecordThatCannotBeReadStillSaysThatTheSubnetWasHeld(t *testing.T) {
	k := keys{testPrefix}
	for _, c := range []struct{ name, text, want string }{
		{"10.5.2.0-24", `{"node":"host1","epoch":3,"released":true}`, "10.5.2.0/24 host1 7 true 3"},
		{"fd00:5::-64", `{"node":"host1","epoch":3}`, "fd00:5::/64 host1 7 false 3"},
		{"10.5.2.0-24", `junk`, "10.5.2.0/24  7 false 0"},
		{"10.5.2.1-24", `{"node":"host1","epoch":3}`, ""},
		{"FD00:5::-64", `{"node":"host1","epoch":3}`, ""},
		{"junk", `{"node":"host1","epoch":3}`, ""},
	} {
		got := ""
		if h, ok := decodeHistory(k, &mvccpb.KeyValue{Key: []byte(k.histories() + c.name), Value: []byte(c.text), ModRevision: 7}); ok {
			got = fmt.Sprintf("%s %s %d %t %d", h.Subnet, h.Node, h.Rank, h.Released, h.Epoch)
		}
		same(t, got, c.want)
	}
}

func FuzzLeaseName(f *testing.F) {
	for _, name := range []string{"10.5.34.0-24", "10.5.34.0-24&fd00:5::-64", "fd00:5::-64", "10.5.01.0-24", "::ffff:10.5.2.0-120", "fe80::%a-64", "&-"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		l, err := parseLeaseName(name)
		if err != nil {
			return
		}
		if back := leaseName(l); back != name {
			t.Errorf("%q is spelled back %q", name, back)
		}
		if n := len(l.Subnets()); n < 1 || n > 2 {
			t.Errorf("%q covers %d subnets", name, n)
		}
	})
}

func FuzzDecodeLease(f *testing.F) {
	good := encodeLease(subnet.Lease{Node: "host1", PublicIP: netip.MustParseAddr("192.0.2.7"), MAC: subnet.MAC{2}, Backend: "vxlan"}, 1)
	six := encodeLease(subnet.Lease{PublicIP: netip.MustParseAddr("2001:db8::7"), MAC: subnet.MAC{2}, Backend: "vxlan"}, 1)
	f.Add("10.5.34.0-24", []byte(good))
	f.Add("10.5.34.0-24&fd00:5::-64", []byte(six))
	f.Add("10.5.34.0-24", []byte(flannels))
	f.Add("10.5.01.0-24", []byte("null"))
	f.Add("fd00:5::-64", []byte(`{"BackendType":"VXLAN","BackendData":{},"PublicIP":"0.0.0.0","PublicIPv6":"fe80::1%x"}`))
	c, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16"}`))
	if err != nil {
		f.Fatal(err)
	}
	k := keys{testPrefix}
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		key := k.subnets() + name
		l, skipped := decodeLease(k, c, &mvccpb.KeyValue{Key: []byte(key), Value: text, CreateRevision: 3})
		if skipped != nil {
			_, err := parseLeaseName(name)
			if skipped.Reason == "" || skipped.Detail == "" || len(skipped.Detail) > 300 || (err == nil) != (len(skipped.Subnets) > 0) {
				t.Errorf("%q %q: skipped as %+v", name, text, skipped)
			}
			return
		}
		if k.subnet(l) != key {
			t.Errorf("%q is spelled back %q", key, k.subnet(l))
		}
		again, skipped := decodeLease(k, c, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(encodeLease(l, 1)), CreateRevision: 3})
		if skipped != nil || again != l {
			t.Errorf("%q %q:\n--- read\n%+v\n--- written and read again\n%+v %v", name, text, l, again, skipped)
		}
	})
}

// flannels is what flannel writes.
const flannels = `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:07"}}`

func TestALeaseOfFlannelIsOneWithoutNode(t *testing.T) {
	same(t, vetted(t, "10.5.2.0-24", flannels), "10.5.2.0/24 of 192.0.2.7 via 192.0.2.7 mac 5e:1f:00:00:00:07\n")
	six := strings.Replace(flannels, `"192.0.2.7","PublicIPv6":null`, `"0.0.0.0","PublicIPv6":"2001:db8::7"`, 1)
	same(t, vetted(t, "10.5.2.0-24", six), "10.5.2.0/24 of 2001:db8::7 via 2001:db8::7 mac 5e:1f:00:00:00:07\n")
	both := strings.Replace(flannels, `"PublicIPv6":null`, `"PublicIPv6":"2001:db8::7"`, 1)
	same(t, vetted(t, "10.5.2.0-24", both), "10.5.2.0/24 of 192.0.2.7 via 192.0.2.7 mac 5e:1f:00:00:00:07\n")
}

// vetted puts one record beside that of an older peer, and tells in words what the network has besides the peer.
func vetted(t *testing.T, name, text string) string {
	t.Helper()
	k := keys{testPrefix}
	v := &view{keys: k, leases: map[string]record{}}
	config := &mvccpb.KeyValue{Value: []byte(`{"Network":"10.5.0.0/16"}`), ModRevision: 1}
	if err := v.setConfig(config, nil); err != nil {
		t.Fatal(err)
	}
	peer := subnet.Lease{Node: "peer", PublicIP: netip.MustParseAddr("192.0.2.1"), MAC: subnet.MAC{2, 0, 0, 0, 0, 1}, Backend: "vxlan"}
	v.put(&mvccpb.KeyValue{Key: []byte(k.subnets() + "10.5.1.0-24"), Value: []byte(encodeLease(peer, 1)), CreateRevision: 2})
	v.put(&mvccpb.KeyValue{Key: []byte(k.subnets() + name), Value: []byte(text), CreateRevision: 3})
	s := v.snapshot()
	if _, ok := s.Lease("peer"); !ok || len(s.Leases)+len(s.Skipped) != 2 {
		t.Errorf("%q %.200q: the peer does not stand beside it: %+v", name, text, s)
	}
	var b strings.Builder
	for _, l := range s.Leases {
		if l.Node != "peer" {
			fmt.Fprintf(&b, "%s mac %s\n", l, l.MAC)
		}
	}
	for _, r := range s.Skipped {
		fmt.Fprintf(&b, "skipped, covers %v: %s\n", r.Subnets, r.Reason)
	}
	return b.String()
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("\n--- have\n%s--- want\n%s", got, want)
	}
}
