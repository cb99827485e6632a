package subnet_test

import (
	"crypto/sha256"
	"encoding/json"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/subnet"
)

// The literals were computed elsewhere, with Python's hashlib: two releases that disagree here cut a network in two.
func TestVTEPMACIsTheHashOfVNIAndName(t *testing.T) {
	for _, c := range []struct {
		vni  uint32
		node string
		want string
	}{
		{1, "h1", "4a:32:42:7b:c2:d9"},
		{1, "h2", "aa:9d:44:a5:d7:67"},
		{7, "h1", "6e:f7:14:c6:6a:23"},
		{0xabcdef, "node-1.example.org", "06:6c:ce:cd:a1:ae"},
	} {
		text := "overlayd vtep" + string([]byte{byte(c.vni >> 24), byte(c.vni >> 16), byte(c.vni >> 8), byte(c.vni)}) + c.node
		sum := sha256.Sum256([]byte(text))
		hashed := subnet.MAC{sum[0]&0b11111100 | 0b10, sum[1], sum[2], sum[3], sum[4], sum[5]}
		if got := subnet.VTEPMAC(c.vni, c.node); got.String() != c.want || got != hashed {
			t.Errorf("VNI %d, node %s\n got %s\nwant %s\nhash %s", c.vni, c.node, got, c.want, hashed)
		}
	}
}

func TestComputedMACsAreLocalAndUnicast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
		for _, m := range []subnet.MAC{
			subnet.VTEPMAC(rapid.Uint32().Draw(t, "vni"), rapid.String().Draw(t, "node")),
			subnet.AddrMAC(address),
			subnet.AddrMAC(netip.AddrFrom4([4]byte(address.AsSlice()[:4]))),
		} {
			if !m.IsUnicast() || m[0]&0b11 != 0b10 {
				t.Fatalf("%s is not a local unicast address", m)
			}
		}
	})
}

func TestAddrMACTellsTheAddress(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"10.5.34.7", "0a:58:0a:05:22:07"},
		{"255.254.253.252", "0a:58:ff:fe:fd:fc"},
		{"fd00:5:0:22::1", "72:ab:e0:9f:1a:03"},
	} {
		if got := subnet.AddrMAC(netip.MustParseAddr(c.addr)).String(); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.addr, got, c.want)
		}
	}
}

func TestUnicastIsNeitherZeroNorGroup(t *testing.T) {
	for _, c := range []struct {
		mac  string
		want bool
	}{
		{"5e:1f:00:00:00:01", true},
		{"00:00:00:00:00:01", true},
		{"00:00:00:00:00:00", false},
		{"01:00:5e:00:00:01", false},
		{"ff:ff:ff:ff:ff:ff", false},
	} {
		m, err := subnet.ParseMAC(c.mac)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.IsUnicast(); got != c.want {
			t.Errorf("%s: got %t, want %t", m, got, c.want)
		}
	}
}

func TestMACIsReadAsItIsWritten(t *testing.T) {
	m := subnet.MAC{0x5e, 0x1f, 0, 0xab, 0xcd, 0xef}
	text, err := json.Marshal(m)
	if err != nil || string(text) != `"5e:1f:00:ab:cd:ef"` {
		t.Fatalf("%s (%v)", text, err)
	}
	for _, spelling := range []string{string(text), `"5E:1F:00:AB:CD:EF"`, `"5e-1f-00-ab-cd-ef"`} {
		var got subnet.MAC
		if err := json.Unmarshal([]byte(spelling), &got); err != nil || got != m {
			t.Errorf("%s\n got %s (%v)\nwant %s", spelling, got, err, m)
		}
	}
	for _, bad := range []string{"", "5e:1f", "5e:1f:00:00:00:01:02:03", "5e:1f:00:00:00:0g", "10.5.34.7"} {
		if got, err := subnet.ParseMAC(bad); err == nil || got != (subnet.MAC{}) {
			t.Errorf("%q: got %s, %v, want an error", bad, got, err)
		}
	}
}
