package e2e

import (
	"fmt"
	"regexp"
	"strings"
)

// knobActs turn every knob of the plan to what it must not be.
func knobActs() []act {
	var all []act
	add := func(name, right, wrong string) {
		gone := ""
		if strings.HasSuffix(name, "disable_ipv6") { // takes all that is IPv6 on the device along
			gone = `fd00:5|fe80::|nhid|id \d+ via`
		}
		if strings.HasSuffix(name, "all/forwarding") {
			gone = `fd00:5`
		}
		all = append(all, act{
			name: name, do: fmt.Sprintf("echo %s > /proc/sys/%s", wrong, name), see: "cat /proc/sys/" + name, want: "^" + right + "$", kind: "sysctl",
			mended: "~ " + regexp.QuoteMeta(name) + " = " + right, gone: gone,
		})
	}
	add("net/ipv4/ip_forward", "1", "0")
	add("net/ipv6/conf/all/forwarding", "1", "0")
	add("net/ipv4/conf/eth0/forwarding", "1", "0")
	add("net/ipv4/conf/overlay.1/rp_filter", "2", "1")
	add("net/ipv6/conf/eth0/accept_ra", "2", "1")
	for _, dev := range []string{"overlay.1", "ovl0"} {
		add("net/ipv4/conf/"+dev+"/forwarding", "1", "0")
		add("net/ipv4/conf/"+dev+"/accept_redirects", "0", "1")
		for _, k := range [][3]string{{"disable_ipv6", "0", "1"}, {"forwarding", "1", "0"}, {"accept_ra", "0", "2"}, {"accept_redirects", "0", "1"}, {"accept_dad", "0", "1"}} {
			add("net/ipv6/conf/"+dev+"/"+k[0], k[1], k[2])
		}
	}
	return all
}

const (
	ourRules       = `delete (rule|chain) inet overlayd`
	ourBridgeRules = `delete (rule|chain) bridge overlayd`
)

// tableActs meddle with our nft tables as a whole, and with others' beside them.
func tableActs() []act {
	const seeGuard, wantGuard = "nft list chain inet overlayd guard", `counter name "stranger" drop`
	const seePods, wantPods = "nft list table bridge overlayd", `{port}.*{pod}`
	return []act{
		{name: "nft flush ruleset", do: "nft flush ruleset; nft -f {dir}/foreign.nft", see: seeGuard, want: wantGuard, kind: "table", mended: `\+ table inet overlayd`},
		{name: "nft flush ruleset in a reload", do: "printf 'flush ruleset\n' | cat - {dir}/foreign.nft | nft -f -", see: seePods, want: wantPods, kind: "table", mended: `\+ table bridge overlayd`},
		{name: "nft table inet deleted", do: "nft delete table inet overlayd", see: seeGuard, want: wantGuard, kind: "table", mended: `\+ table inet overlayd`},
		{name: "nft table bridge deleted", do: "nft delete table bridge overlayd", see: seePods, want: wantPods, kind: "table", mended: `\+ table bridge overlayd`},
		{name: "nft table inet made by somebody else", do: "printf 'delete table inet overlayd\ntable inet overlayd { chain guard { accept; }; }\n' | nft -f -", see: seeGuard, want: wantGuard, kind: "table", mended: `table inet overlayd`, gone: ourRules},
		{name: "nft set deleted", do: "printf 'flush chain inet overlayd guard\ndelete set inet overlayd subnets4\n' | nft -f -", see: seeGuard + "; nft list set inet overlayd subnets4", want: `10.5.35.0/24`, kind: "table", mended: `table inet overlayd`, gone: ourRules},
		{name: "nft set added", do: "nft add set inet overlayd more '{ type ipv4_addr; }'", see: "nft list sets inet | grep -c 'set more' || true", want: `^0$`, kind: "table", mended: `table inet overlayd`, gone: ourRules + `|delete set inet overlayd more`},
		{name: "nft chain added", do: "nft add chain inet overlayd more '{ type filter hook forward priority 5; policy drop; }'", see: "nft list chains inet | grep -c 'chain more' || true", want: `^0$`, kind: "table", mended: `table inet overlayd`, gone: ourRules},
	}
}

// ruleActs meddle with single rules and elements.
func ruleActs() []act {
	const seeGuard, wantGuard = "nft list chain inet overlayd guard", `not_unicast(.|\n)*@subnets4(.|\n)*@hosts4(.|\n)*@peers4(.|\n)*@subnets6(.|\n)*@peers6(.|\n)*"stranger" drop`
	const seeInput = "nft list chain inet overlayd input"
	handle := func(chain, rule string) string {
		return fmt.Sprintf("$(nft -a list chain %s | sed -n 's/.*%s.* handle //p' | head -n 1)", chain, rule)
	}
	rules := func(name, do, see, want string) act {
		return act{name: name, do: do, see: see, want: want, kind: "table", mended: `~ table inet overlayd`, gone: ourRules}
	}
	element := func(name, do, see, want, mended, gone string) act {
		return act{name: name, do: do, see: see, want: want, kind: "member", mended: mended, gone: gone}
	}
	return []act{
		rules("nft chain flushed", "nft flush chain inet overlayd guard", seeGuard, wantGuard),
		rules("nft chain for masquerade flushed", "nft flush chain inet overlayd postrouting", "nft list chain inet overlayd postrouting", `fully-random`),
		rules("nft rule deleted", "nft delete rule inet overlayd guard handle "+handle("inet overlayd guard", "stranger"), seeGuard, wantGuard),
		rules("nft rule inserted", "nft insert rule inet overlayd guard accept", seeGuard, wantGuard),
		rules("nft rule that drops all inserted", "nft insert rule inet overlayd input drop", seeInput+" | grep -c drop || true", `^0$`),
		rules("nft rules reordered", "nft delete rule inet overlayd guard handle "+handle("inet overlayd guard", "not_unicast")+"; nft add rule inet overlayd guard '@th,128,8 & 0x1 == 0x1 counter name not_unicast drop'", seeGuard, wantGuard),
		rules("nft policy changed", "nft chain inet overlayd input '{ policy drop; }'", seeInput, `policy accept`),
		{name: "nft rules of the bridge flushed", do: "nft flush chain bridge overlayd prerouting", see: "nft list chain bridge overlayd prerouting", want: `counter name "spoofed" drop`, kind: "table", mended: `~ table bridge overlayd`, gone: ourBridgeRules},
		element("nft element of a peer removed", "nft delete element inet overlayd subnets4 '{ 192.0.2.8 . 0x0a0523 }'", "nft list set inet overlayd subnets4", `10.5.35.0/24`, `\+ element inet overlayd subnets4 \{ 192.0.2.8 . 10.5.35.0/24 \}`, ""),
		element("nft element of a stranger added", "nft add element inet overlayd peers4 '{ 192.0.2.66 . 0x0a054d00-0x0a054dff }'", "nft list set inet overlayd peers4 | grep -c 192.0.2.66 || true", `^0$`, `- element inet overlayd peers4 \{ 192.0.2.66 . 10.5.77.0/24 \}`, `192.0.2.66`),
		element("nft element of a stranger added to the subnets", "nft add element inet overlayd subnets4 '{ 192.0.2.66 . 0x0a054d }'", "nft list set inet overlayd subnets4 | grep -c 192.0.2.66 || true", `^0$`, `- element inet overlayd subnets4 \{ 192.0.2.66 . 10.5.77.0/24 \}`, `192.0.2.66`),
		element("nft element of the pool removed", "nft flush set inet overlayd pool4", "nft list set inet overlayd pool4", `10.5.0.0/16`, `\+ element inet overlayd pool4`, ""),
		element("nft element of a pod removed", "nft flush set bridge overlayd pods4", "nft list set bridge overlayd pods4", `{pod}`, `\+ element bridge overlayd pods4 \{ {port} . .* . {pod} \}`, ""),
		element("nft element of a pod's port removed", "nft flush set bridge overlayd ports", "nft list set bridge overlayd ports", `{port}`, `\+ element bridge overlayd ports \{ {port} \}`, ""),
	}
}

// firewallActs are others' rules that drop what we forward.
func firewallActs() []act {
	const chain = "nft add table inet handmade; nft add chain inet handmade forward '{ type filter hook forward priority 0; policy drop; }'"
	return []act{
		{
			name: "iptables -P FORWARD DROP", do: "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP", see: "iptables -S FORWARD; ip6tables -S FORWARD", want: `-i ovl0 .*-j ACCEPT(.|\n)*-i ovl0 .*-j ACCEPT`,
			named: `opened +nft chain ip filter FORWARD.*accept all from and to ovl0\n *opened +nft chain ip6 filter FORWARD`, undo: ":",
		},
		{name: "iptables -F FORWARD", do: "iptables -F FORWARD", see: "iptables -S FORWARD", want: `-[io] ovl0 .*-j ACCEPT(.|\n)*-[io] ovl0 .*-j ACCEPT`, kind: "accept", mended: `\+ rule ip filter FORWARD`},
		{name: "iptables -P FORWARD ACCEPT", do: "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT", see: "iptables -S FORWARD | grep -c ovl0 || true", want: `^0$`, gone: `filter FORWARD`},
		{
			name: "hand-made nft chain with policy drop", do: chain, see: seeRoute, want: wantRoute,
			named: `nft chain inet handmade forward drops .*: nft insert rule inet handmade forward iifname ovl0 accept; nft insert rule inet handmade forward oifname ovl0 accept`,
			undo:  "{remedy}",
		},
		{name: "its chain deleted", do: "nft delete table inet handmade", see: seeRoute, want: wantRoute},
		{name: "iptables -A FORWARD -j REJECT", do: "iptables -A FORWARD -j REJECT", see: "iptables -S FORWARD", want: `-i ovl0 .*-j ACCEPT(.|\n)*-j REJECT`},
		{name: "iptables -F FORWARD, and all accepted", do: "iptables -F FORWARD", see: "iptables -S FORWARD | grep -c ovl0 || true", want: `^0$`, gone: `filter FORWARD`},
		{
			name: "iptables INPUT that drops VXLAN", do: "iptables -A INPUT -p tcp -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables -P INPUT DROP", see: seeRoute, want: wantRoute,
			named: `nft chain ip filter INPUT drops VXLAN from peers such as 192.0.2.8 \(udp port 8472\); to open it: iptables -I INPUT -p udp --dport 8472 -j ACCEPT`,
			undo:  "{remedy}",
		},
		{name: "iptables -P INPUT ACCEPT", do: "iptables -P INPUT ACCEPT; iptables -F INPUT", see: seeRoute, want: wantRoute},
	}
}

// underlayActs change what carries the network.
func underlayActs() []act {
	const readdress = "printf 'addr del %s/24 dev eth0\naddr add %s/24 dev eth0\n' | ip -batch -"
	return []act{
		{name: "underlay link down and up", do: "ip link set eth0 down; ip link set eth0 up", see: seeRoute, want: wantRoute},
		{name: "cable out and in", hand: func(s *scene) error {
			if err := s.lab.Cut("host1"); err != nil {
				return err
			}
			return s.lab.Heal("host1")
		}, see: seeRoute, want: wantRoute},
		{name: "underlay with a smaller MTU", do: "ip link set eth0 mtu 1400", see: "ip -o link show overlay.1; ip -o link show ovl0", want: `mtu 1350(.|\n)*mtu 1350`},
		{name: "underlay with its MTU again", do: "ip link set eth0 mtu 1500", see: "ip -o link show overlay.1; ip -o link show ovl0", want: `mtu 1450(.|\n)*mtu 1450`},
		{name: "underlay with another address", do: fmt.Sprintf(readdress, "192.0.2.7", "192.0.2.77"), see: seeDevice, want: `local 192.0.2.77 `},
		{name: "underlay with its address again", do: fmt.Sprintf(readdress, "192.0.2.77", "192.0.2.7"), see: seeDevice, want: wantDevice},
		{name: "underlay interface replaced", hand: func(s *scene) error { return s.lab.Replace(s.host) }, see: seeDevice, want: wantDevice, kind: "vxlan", mended: `overlay.1: `, gone: ofDevice},
	}
}
