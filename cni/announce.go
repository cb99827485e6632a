package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// announce tells the bridge's other ports where the addresses are now, from inside the pod: a gratuitous ARP request (RFC
// 5227 section 3) or an unsolicited neighbour advertisement (RFC 4861 section 7.2.6) each.
func announce(index int, addrs []address, mac subnet.MAC) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // it was only written to
	var errs []error
	for _, a := range addrs {
		frame := advertisement(a.ip.AsSlice(), mac)
		if a.ip.Is4() {
			frame = gratuitousARP(a.ip.AsSlice(), mac)
		}
		errs = append(errs, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}))
	}
	return errors.Join(errs...)
}

func ethernet(dst, src subnet.MAC, kind uint16) []byte {
	frame := append(append([]byte(nil), dst[:]...), src[:]...)
	return binary.BigEndian.AppendUint16(frame, kind)
}

func gratuitousARP(ip []byte, mac subnet.MAC) []byte {
	everybody := subnet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := ethernet(everybody, mac, unix.ETH_P_ARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths 6 and 4, request (RFC 826)
	frame = append(append(frame, mac[:]...), ip...)
	return append(append(frame, make([]byte, len(mac))...), ip...)
}

// advertisement is an ICMPv6 neighbour advertisement to all nodes (ff02::1) with the override flag.
func advertisement(ip []byte, mac subnet.MAC) []byte {
	const (
		neighborAdvert = 136
		override       = 0x20
		targetLLA      = 2 // option, one unit of eight bytes long
		icmpLen        = 32
		hopLimit       = 255 // RFC 4861 section 7.1.2: else it is not believed
	)
	all := []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	icmp := append([]byte{neighborAdvert, 0, 0, 0, override, 0, 0, 0}, ip...)
	icmp = append(append(icmp, targetLLA, 1), mac[:]...)
	pseudo := append(append(append([]byte(nil), ip...), all...), 0, 0, 0, icmpLen, 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))
	frame := ethernet(subnet.MAC{0x33, 0x33, 0, 0, 0, 1}, mac, unix.ETH_P_IPV6)
	frame = append(frame, 0x60, 0, 0, 0, 0, icmpLen, unix.IPPROTO_ICMPV6, hopLimit)
	return append(append(append(frame, ip...), all...), icmp...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
