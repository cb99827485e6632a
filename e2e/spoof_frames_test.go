package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// Frames and packets, built by hand: what a stranger or a pod with a raw socket can send.

var broadcast = subnet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(dst, src subnet.MAC, kind uint16, payload []byte) []byte {
	b := append(append([]byte(nil), dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, kind), payload...)
}

// etherType is that of packets with the address.
func etherType(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i, b := range p {
			sum += uint32(b) << (8 * (1 - i%2)) // all parts but the last are of even length
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// packet puts an IP header of either family in front.
func packet(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() {
		return fragment(src, dst, protocol, 0, false, payload)
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, protocol, 255) // hop limit: neighbour discovery wants 255
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(b, payload...)
}

// fragment is a part of an IPv4 packet that begins at the offset, in bytes.
func fragment(src, dst netip.Addr, protocol byte, offset int, more bool, payload []byte) []byte {
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(payload)))
	place := uint16(offset / 8)
	if more {
		place |= 0x2000
	}
	b = append(b, 0x12, 0x34) // the same in all parts
	b = binary.BigEndian.AppendUint16(b, place)
	b = append(b, 64, protocol, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// fragments are the packet in two parts: the first ends in the middle of the VXLAN header, before the VNI.
func fragments(src, dst netip.Addr, protocol byte, payload []byte) [][]byte {
	const cut = 8
	return [][]byte{fragment(src, dst, protocol, 0, true, payload[:cut]), fragment(src, dst, protocol, cut, false, payload[cut:])}
}

// transport is UDP or ICMPv6 with its checksum where IPv6 wants one; at is where that lies.
func transport(src, dst netip.Addr, protocol byte, at int, text []byte) []byte {
	if src.Is4() {
		return text
	}
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(text)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	binary.BigEndian.PutUint16(text[at:], checksum(pseudo, text))
	return text
}

func udp(src, dst netip.AddrPort, text []byte) []byte {
	var b []byte
	for _, v := range []uint16{src.Port(), dst.Port(), uint16(8 + len(text)), 0} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return packet(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, transport(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, 6, append(b, text...)))
}

// vxlan is a frame with its VXLAN header.
func vxlan(vni uint32, frame []byte) []byte {
	b := []byte{8, 0, 0, 0}
	return append(binary.BigEndian.AppendUint32(b, vni<<8), frame...)
}

// arp is a message of either kind: 1 asks, 2 answers.
func arp(kind byte, mac subnet.MAC, ip netip.Addr, toMAC subnet.MAC, to netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, kind}
	b = append(append(b, mac[:]...), ip.AsSlice()...)
	return append(append(b, toMAC[:]...), to.AsSlice()...)
}

// ICMPv6 types (RFC 4861 section 4).
const (
	routerAdvert    = 134
	neighborAdvert  = 136
	redirectMessage = 137
)

// discovery is a message of neighbour discovery: after the type and four bytes of flags comes the body.
func discovery(src, dst netip.Addr, kind byte, flags uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, flags)
	return packet(src, dst, unix.IPPROTO_ICMPV6, transport(src, dst, unix.IPPROTO_ICMPV6, 2, append(b, body...)))
}

// linkLayer is an option with a MAC: 1 of the source, 2 of the target (RFC 4861 section 4.6.1).
func linkLayer(kind byte, mac subnet.MAC) []byte { return append([]byte{kind, 1}, mac[:]...) }

// option is one that nobody knows, with a mark: what comes after the packet a bridge may cut off.
func option(mark []byte) []byte {
	b := make([]byte, 16)
	b[0], b[1] = 253, 2
	copy(b[2:], mark)
	return b
}

func macOf(text string) subnet.MAC {
	hw, err := net.ParseMAC(text)
	if err != nil || len(hw) != len(subnet.MAC{}) {
		return subnet.MAC{}
	}
	return subnet.MAC(hw)
}
