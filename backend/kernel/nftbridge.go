package kernel

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// Offsets into frames and packets on the bridge.
const (
	atEtherSrc   = 6
	atEtherType  = 12
	atARPSrcMAC  = 8
	atARPSrcIP   = 14
	atICMPTarget = 8 // of neighbour messages (RFC 4861 section 4.3)
	regMAC       = reg2
	regAddr      = 14 // NFT_REG32_06: after 16 bytes of name and 6, rounded to 8, of MAC
)

// ICMPv6 types (RFC 4861 section 4).
const (
	typeRouterAdvert   = 134
	typeNeighborAdvert = 136
	typeRedirect       = 137
)

// bridgeChains are the chains of the table of family bridge: pods send only what is theirs.
func bridgeChains(f backend.Filter) []nftChain {
	c := nftChain{name: "prerouting", comment: "pods send only what is theirs", kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: rawPriority}
	link, network, transport := expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	ether := func(kind uint16) []expr.Any { return match(load(link, atEtherType, 2, reg1), equal(be16(kind)...)) }
	port := meta(expr.MetaKeyIIFNAME)
	mac := load(link, atEtherSrc, 6, regMAC)
	icmp := func(kind byte) []expr.Any {
		return append(append(ether(unix.ETH_P_IPV6), l4proto(unix.IPPROTO_ICMPV6)...), load(transport, 0, 1, reg1), equal(kind))
	}
	own := match(port, mac, inSet("macs"))
	accept := verdict(expr.VerdictAccept)
	if f.Bits4 > 0 { // most packets: one look for them
		c.add("their addresses", ether(unix.ETH_P_IP), match(port, mac, load(network, 12, 4, regAddr), inSet("pods4")), accept)
	}
	if f.Bits6 > 0 {
		c.add("their addresses", ether(unix.ETH_P_IPV6), match(meta(expr.MetaKeyL4PROTO), differ(unix.IPPROTO_ICMPV6)),
			match(port, mac, load(network, 8, 16, regAddr), inSet("pods6")), accept)
	}
	c.add("ports that are no pod's, or too new to be listed", match(port, notIn("ports")), accept)
	if f.Bits4 > 0 {
		c.add("both MACs and the address", ether(unix.ETH_P_ARP),
			match(port, mac, load(network, atARPSrcIP, 4, regAddr), inSet("pods4")),
			match(port, load(network, atARPSrcMAC, 6, regMAC), load(network, atARPSrcIP, 4, regAddr), inSet("pods4")), accept)
		c.add("asks whether an address is free", ether(unix.ETH_P_ARP), match(load(network, atARPSrcIP, 4, reg1), equal(0, 0, 0, 0)),
			own, match(port, load(network, atARPSrcMAC, 6, regMAC), inSet("macs")), accept)
	}
	if f.Bits6 > 0 {
		c.add("no pod is a router", icmp(typeRouterAdvert), drop("router_advert"))
		c.add("", icmp(typeRedirect), drop("router_advert"))
		c.add("", icmp(typeNeighborAdvert), match(port, mac, load(transport, atICMPTarget, 16, regAddr), inSet("targets6")), accept)
		c.add("its link-local address", icmp(typeNeighborAdvert), match(load(transport, atICMPTarget, 2, reg1), mask(0xff, 0xc0), equal(0xfe, 0x80)), own, accept)
		c.add("", icmp(typeNeighborAdvert), drop("spoofed"))
		c.add("", ether(unix.ETH_P_IPV6), match(port, mac, load(network, 8, 16, regAddr), inSet("pods6")), accept)
		c.add("link-local, and before it has an address", ether(unix.ETH_P_IPV6),
			match(load(network, 8, 16, reg1), mask(first16(0xff, 0xc0)...), equal(first16(0xfe, 0x80)...)), own, accept)
		c.add("", ether(unix.ETH_P_IPV6), match(load(network, 8, 16, reg1), equal(first16()...)), own, accept)
	} else {
		c.add("the network has no IPv6", ether(unix.ETH_P_IPV6), verdict(expr.VerdictDrop))
	}
	c.add("anything else", drop("spoofed"))
	settings, _ := f.Comments()
	return []nftChain{{name: settingsChain, comment: settings}, c}
}
