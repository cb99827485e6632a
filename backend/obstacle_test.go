package backend_test

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
)

func TestAnObstacleIsOpenedInTheWordsOfItsMaker(t *testing.T) {
	h := host()
	peer := netip.MustParseAddr("192.0.2.8")
	for _, c := range []struct {
		obstacle     backend.Obstacle
		loss, remedy string
	}{
		{
			backend.Obstacle{Chain: backend.Chain{Family: "inet", Table: "firewalld", Name: "filter_FORWARD"}, Hook: backend.HookForward, Tool: "firewalld", Peer: netip.MustParseAddr("10.5.35.2")},
			"packets between pods here and those of peers such as 10.5.35.2",
			"firewall-cmd --permanent --zone=trusted --add-interface=ovl0 --add-interface=overlay.1 && firewall-cmd --reload",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "inet", Table: "firewalld", Name: "filter_INPUT"}, Hook: backend.HookInput, Tool: "firewalld", Peer: peer},
			"VXLAN from peers such as 192.0.2.8 (udp port 4789)",
			"firewall-cmd --permanent --add-port=4789/udp && firewall-cmd --reload (with the --zone of eth0, if it is not the default)",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "ip", Table: "filter", Name: "FORWARD"}, Hook: backend.HookForward, Tool: "ufw", Peer: peer},
			"packets between pods here and those of peers such as 192.0.2.8",
			"ufw route allow in on ovl0 && ufw route allow out on ovl0",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "ip", Table: "filter", Name: "INPUT"}, Hook: backend.HookInput, Tool: "ufw", Peer: peer},
			"VXLAN from peers such as 192.0.2.8 (udp port 4789)", "ufw allow 4789/udp",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "ip", Table: "filter", Name: "OUTPUT"}, Hook: backend.HookOutput, Tool: "ufw", Peer: peer},
			"VXLAN to peers such as 192.0.2.8 (udp port 4789)", "ufw allow out 4789/udp",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "ip", Table: "filter", Name: "FORWARD"}, Hook: backend.HookForward, Tool: "iptables", Peer: peer},
			"packets between pods here and those of peers such as 192.0.2.8", "see the rules before those with the comment overlayd: iptables -S FORWARD",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "ip6", Table: "filter", Name: "INPUT"}, Hook: backend.HookInput, Tool: "iptables", Peer: peer},
			"VXLAN from peers such as 192.0.2.8 (udp port 4789)", "ip6tables -I INPUT -p udp --dport 4789 -j ACCEPT",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "inet", Table: "mine", Name: "fw"}, Hook: backend.HookForward, Peer: peer},
			"packets between pods here and those of peers such as 192.0.2.8", "nft insert rule inet mine fw iifname ovl0 accept; nft insert rule inet mine fw oifname ovl0 accept",
		},
		{
			backend.Obstacle{Chain: backend.Chain{Family: "inet", Table: "mine", Name: "fw"}, Hook: backend.HookOutput, Peer: peer},
			"VXLAN to peers such as 192.0.2.8 (udp port 4789)", "nft insert rule inet mine fw udp dport 4789 accept",
		},
	} {
		checkText(t, c.obstacle.Loss(4789), c.loss)
		checkText(t, c.obstacle.Remedy(h, 4789), c.remedy)
	}
}
