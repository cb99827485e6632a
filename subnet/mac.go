package subnet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an Ethernet address (EUI-48). The zero MAC means that there is none.
type MAC [6]byte

// VTEPMAC returns the MAC of a node's VXLAN device: the first six bytes of SHA-256 over "overlayd vtep", the VNI (four
// bytes, big-endian) and the node's name, made local and unicast. Being computed, it cannot be lost, and a restart, a
// re-created device or a new address of the host does not change it.
func VTEPMAC(vni uint32, node string) MAC {
	text := binary.BigEndian.AppendUint32([]byte("overlayd vtep"), vni)
	sum := sha256.Sum256(append(text, node...))
	return localUnicast(sum)
}

// AddrMAC returns the MAC of an interface that holds a: 0a:58 and the four bytes of an IPv4 address, or a hash of an IPv6
// one. Whoever gets the address later gets the MAC with it, so no neighbour's ARP cache is ever wrong about it.
func AddrMAC(a netip.Addr) MAC {
	if a.Is4() {
		b := a.As4()
		return MAC{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	return localUnicast(sha256.Sum256(a.AsSlice()))
}

func localUnicast(sum [sha256.Size]byte) MAC {
	m := MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02 // IEEE 802: bit 0 is group, bit 1 is locally administered
	return m
}

// ParseMAC reads six bytes in hexadecimal with colons or dashes.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("MAC address %q: want six bytes such as 5e:1f:00:00:00:01", s)
	}
	return MAC(hw), nil
}

// IsUnicast says whether m can be one device's address: neither zero nor multicast (broadcast included).
func (m MAC) IsUnicast() bool { return m != MAC{} && m[0]&1 == 0 }

// String returns m in lower-case hexadecimal with colons, as ip(8) prints it.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements [encoding.TextMarshaler].
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}
