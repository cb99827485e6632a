package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Sizes of headers in bytes, and where things are in them (RFC 791, RFC 768, RFC 7348).
const (
	etherLen = 14
	ipLen    = 20
	udpLen   = 8
	vxlanLen = 8
	vxlan    = 8472
)

// decode takes a VXLAN packet from one pod to another apart, outermost first; nil when the frame is none.
func decode(frame []byte, from, to netip.Addr) []string {
	if len(frame) < 2*etherLen+2*ipLen+2*udpLen+vxlanLen {
		return nil
	}
	outer, rest := ethernet(frame)
	outerIP, rest, protocol := ipv4(rest)
	if protocol != 17 || binary.BigEndian.Uint16(rest[2:]) != vxlan {
		return nil
	}
	udp := fmt.Sprintf("UDP       %d > %d", binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:]))
	rest = rest[udpLen:]
	header := fmt.Sprintf("VXLAN     VNI %d", binary.BigEndian.Uint32(rest[4:])>>8)
	inner, rest := ethernet(rest[vxlanLen:])
	innerIP, rest, _ := ipv4(rest)
	if !strings.Contains(innerIP, from.String()+" > "+to.String()) {
		return nil
	}
	lines := []string{outer, outerIP, udp, header, inner, innerIP}
	for i := range lines[4:] {
		lines[4+i] = "  " + lines[4+i]
	}
	return append(lines, fmt.Sprintf("  UDP       %d > %d", binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])))
}

func ethernet(b []byte) (string, []byte) {
	return fmt.Sprintf("Ethernet  %s > %s", net.HardwareAddr(b[6:12]), net.HardwareAddr(b[:6])), b[etherLen:]
}

func ipv4(b []byte) (string, []byte, byte) {
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return fmt.Sprintf("IPv4      %s > %s, %d bytes", src, dst, binary.BigEndian.Uint16(b[2:])), b[ipLen:], b[9]
}
