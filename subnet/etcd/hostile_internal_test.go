package etcd

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// of returns a value that is right but for one replaced part.
func of(old, new string) string {
	const right = `{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"},"Node":"host9"}`
	if !strings.Contains(right, old) {
		panic(old + " is not in the value")
	}
	return strings.Replace(right, old, new, 1)
}

// address returns a value with another PublicIP.
func address(ip string) string { return of("192.0.2.9", ip) }

// address6 returns a value with a PublicIPv6 and no IPv4 address.
func address6(ip string) string {
	return of(`"192.0.2.9","PublicIPv6":null`, `"0.0.0.0","PublicIPv6":"`+ip+`"`)
}

func mac(text string) string { return of("5e:1f:00:00:00:09", text) }

func TestTheRightValueIsTaken(t *testing.T) {
	const want = "10.5.2.0/24 of host9 via 192.0.2.9 mac 5e:1f:00:00:00:09\n"
	for _, text := range []string{
		of("", ""),
		of(`"VNI":1,`, ""),               // says nothing against ours
		of("vxlan", "VXLAN"),             // as free as in the configuration
		of(`"Node"`, `"Later":7,"Node"`), // another version's field
		of(`,"PublicIPv6":null`, ""),
	} {
		same(t, vetted(t, "10.5.2.0-24", text), want)
	}
}

// TestAHostileValueIsSkippedAndItsSubnetIsNotFree has the rows S1 and S5 to S7 of the catalogue of faults.
func TestAHostileValueIsSkippedAndItsSubnetIsNotFree(t *testing.T) {
	for _, c := range []struct{ name, text, reason string }{
		{"empty", "", "value"},
		{"not JSON", "10.5.2.0", "value"},
		{"cut off", of(`"Node":"host9"}`, ""), "value"},
		{"text behind", of("", "") + "{}", "value"},
		{"null", "null", "value"},
		{"an array", "[" + of("", "") + "]", "value"},
		{"a number", "7", "value"},
		{"a string", `"vxlan"`, "value"},
		{"an object without fields", "{}", "value"},
		{"a field of another type", of(`"192.0.2.9"`, "7"), "value"},
		{"deeply nested", strings.Repeat(`{"BackendData":`, 270), "value"},
		{"deeply nested and whole", strings.Repeat("[", 2000) + strings.Repeat("]", 2000), "value"},
		{"invalid UTF-8", of("host9", "host\xff"), "node"},
		{"invalid UTF-8 outside strings", "\xff\xfe" + of("", ""), "value"},
		{"more than 4 KiB", of(`"Node"`, `"X":"`+strings.Repeat("x", 4096)+`","Node"`), "value"},
		{"1.5 MiB", of(`"Node"`, `"X":"`+strings.Repeat("x", 3<<19)+`","Node"`), "value"},

		{"public address unset", address("0.0.0.0"), "public-ip"},
		{"public address empty", address(""), "public-ip"},
		{"public address loopback", address("127.0.0.1"), "public-ip"},
		{"public address multicast", address("224.0.0.9"), "public-ip"},
		{"public address broadcast", address("255.255.255.255"), "public-ip"},
		{"public address link-local", address("169.254.0.9"), "public-ip"},
		{"public address inside the pool", address("10.5.9.9"), "public-ip"},
		{"public address of another peer", address("192.0.2.1"), "public-ip"},
		{"public address a name", address("localhost"), "public-ip"},
		{"public address with a port", address("192.0.2.9:8472"), "public-ip"},
		{"public address a prefix", address("192.0.2.9/32"), "public-ip"},
		{"public address zero-padded", address("192.0.2.09"), "public-ip"},
		{"IPv6 in the field for IPv4", address("2001:db8::9"), "public-ip"},
		{"IPv4 in the field for IPv6", address6("192.0.2.9"), "public-ip"},
		{"mapped into IPv6", address("::ffff:192.0.2.9"), "public-ip"},
		{"mapped, another peer's", address6("::ffff:192.0.2.1"), "public-ip"},
		{"mapped, inside the pool", address6("::ffff:10.5.9.9"), "public-ip"},
		{"mapped, broadcast", address6("::ffff:255.255.255.255"), "public-ip"},
		{"IPv6 unset", address6("::"), "public-ip"},
		{"IPv6 loopback", address6("::1"), "public-ip"},
		{"IPv6 multicast", address6("ff02::1"), "public-ip"},
		{"IPv6 link-local", address6("fe80::1"), "public-ip"},
		{"IPv6 with a zone", address6("2001:db8::9%eth0"), "public-ip"},

		{"MAC zero", mac("00:00:00:00:00:00"), "mac"},
		{"MAC missing", of(`,"VtepMAC":"5e:1f:00:00:00:09"`, ""), "mac"},
		{"MAC multicast", mac("01:00:5e:00:00:01"), "mac"},
		{"MAC broadcast", mac("ff:ff:ff:ff:ff:ff"), "mac"},
		{"MAC of another peer", mac("02:00:00:00:00:01"), "mac"},
		{"MAC of eight bytes", mac("5e:1f:00:00:00:00:00:09"), "value"},
		{"MAC no MAC", mac("host9"), "value"},

		{"another VNI", of(`"VNI":1`, `"VNI":2`), "value"},
		{"a negative VNI", of(`"VNI":1`, `"VNI":-1`), "value"},
		{"a VNI beyond 32 bits", of(`"VNI":1`, `"VNI":4294967297`), "value"},
		{"another backend", of("vxlan", "host-gw"), "value"},
		{"no backend", of(`"BackendType":"vxlan",`, ""), "value"},
		{"no backend data", of(`"BackendData":{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"},`, ""), "value"},
		{"backend data null", of(`{"VNI":1,"VtepMAC":"5e:1f:00:00:00:09"}`, "null"), "value"},

		{"a node name with a slash", of("host9", "../config"), "node"},
		{"a node name with a newline", of("host9", `a\nb`), "node"},
		{"a node name of 254 bytes", of("host9", strings.Repeat("a", 254)), "node"},
		{"the node name of an older lease", of("host9", "peer"), "node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			same(t, vetted(t, "10.5.2.0-24", c.text), "skipped, covers [10.5.2.0/24]: "+c.reason+"\n")
		})
	}
}

func TestAHostileKeyIsSkipped(t *testing.T) {
	for _, c := range []struct{ name, key, want string }{
		{"no subnet", "junk", "skipped, covers []: key\n"},
		{"host bits", "10.5.2.1-24", "skipped, covers []: key\n"},
		{"a key below a lease", "10.5.2.0-24/x", "skipped, covers []: key\n"},
		{"everything", "0.0.0.0-0", "skipped, covers [0.0.0.0/0]: outside\n"},
		{"half of everything", "128.0.0.0-1", "skipped, covers [128.0.0.0/1]: outside\n"},
		{"the pool itself", "10.5.0.0-16", "skipped, covers [10.5.0.0/16]: outside\n"},
		{"the underlay", "192.0.2.0-24", "skipped, covers [192.0.2.0/24]: outside\n"},
		{"link-local", "169.254.0.0-24", "skipped, covers [169.254.0.0/24]: outside\n"},
		{"multicast", "224.0.0.0-24", "skipped, covers [224.0.0.0/24]: outside\n"},
		{"a family that is off", "fd00:5::-64", "skipped, covers [fd00:5::/64]: outside\n"},
		{"half of an older lease", "10.5.1.128-25", "skipped, covers [10.5.1.128/25]: overlap\n"},
		{"twice an older lease", "10.5.0.0-23", "skipped, covers [10.5.0.0/23]: overlap\n"},
	} {
		t.Run(c.name, func(t *testing.T) { same(t, vetted(t, c.key, of("", "")), c.want) })
	}
}

// TestSkippedTextIsBounded: a status and a log show it.
func TestSkippedTextIsBounded(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for key, text := range map[string]string{long: "{}", "10.5.2.0-24": mac(long), "10.5.3.0-24": address(long), "10.5.4.0-24": of("vxlan", long)} {
		v := &view{keys: keys{testPrefix}, leases: map[string]record{}}
		v.put(&mvccpb.KeyValue{Key: []byte(v.keys.subnets() + key), Value: []byte(text)})
		for _, k := range v.snapshot().Skipped {
			if len(k.Key)+len(k.Detail) > 500 {
				t.Errorf("%.20s: %d bytes of text", key, len(k.Key)+len(k.Detail))
			}
		}
	}
}
