package backend

import (
	"fmt"
	"net/netip"
	"strings"
)

// Hook is where in a packet's way a chain looks at it, in nft's words.
type Hook string

// Hooks at which others can drop what is ours.
const (
	HookForward Hook = "forward" // packets between pods of two hosts
	HookInput   Hook = "input"   // VXLAN from peers
	HookOutput  Hook = "output"  // VXLAN to peers
)

// Obstacle is somebody else's base chain that drops packets of the overlay, for certain: it was followed rule by rule with a
// packet of ours, and no rule on the way lets it pass or is one that cannot be judged.
type Obstacle struct {
	Chain Chain
	Hook  Hook
	Tool  string     // that made the chain: "firewalld", "ufw", "iptables", else ""
	Peer  netip.Addr // where the packet comes from or goes to
}

// Remedy says in the words of its maker's tool how the chain is opened: a rule of ours in somebody's table would not be ours
// to keep.
func (o Obstacle) Remedy(h Host, port uint16) string {
	devices := []string{h.Bridge}
	if h.VXLAN != "" {
		devices = append(devices, h.VXLAN)
	}
	udp := fmt.Sprintf("udp dport %d accept", port)
	switch {
	case o.Tool == "firewalld" && o.Hook == HookForward:
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + strings.Join(devices, " --add-interface=") + " && firewall-cmd --reload"
	case o.Tool == "firewalld" && o.Hook == HookInput:
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/udp && firewall-cmd --reload (with the --zone of %s, if it is not the default)", port, h.Uplink.Name)
	case o.Tool == "ufw" && o.Hook == HookForward:
		return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", h.Bridge, h.Bridge)
	case o.Tool == "ufw":
		return fmt.Sprintf("ufw allow %s%d/udp", map[Hook]string{HookOutput: "out "}[o.Hook], port)
	case o.Tool == "iptables" && o.Hook == HookForward: // where ours are, and a drop came before them
		return fmt.Sprintf("see the rules before those with the comment overlayd: %s -S %s", o.iptables(), o.Chain.Name)
	case o.Tool == "iptables":
		return fmt.Sprintf("%s -I %s -p udp --dport %d -j ACCEPT", o.iptables(), o.Chain.Name, port)
	case o.Hook == HookForward:
		return fmt.Sprintf("nft insert rule %s iifname %s accept; nft insert rule %s oifname %s accept", o.Chain, h.Bridge, o.Chain, h.Bridge)
	}
	return fmt.Sprintf("nft insert rule %s %s", o.Chain, udp)
}

func (o Obstacle) iptables() string {
	if o.Chain.Family == "ip6" {
		return "ip6tables"
	}
	return "iptables"
}

// Loss says what is lost, on a network that uses the given UDP port.
func (o Obstacle) Loss(port uint16) string {
	switch o.Hook {
	case HookInput:
		return fmt.Sprintf("VXLAN from peers such as %s (udp port %d)", o.Peer, port)
	case HookOutput:
		return fmt.Sprintf("VXLAN to peers such as %s (udp port %d)", o.Peer, port)
	}
	return fmt.Sprintf("packets between pods here and those of peers such as %s", o.Peer)
}
