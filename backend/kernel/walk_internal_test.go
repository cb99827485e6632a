package kernel

import (
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// TestPortsInTheWordsOfIptables: those before 1.8.8 do not say them in nft's own.
func TestPortsInTheWordsOfIptables(t *testing.T) {
	all := [2]uint16{0, 0xffff}
	vxlan := packet{protocol: unix.IPPROTO_UDP, port: 8472}
	pods := packet{protocol: unix.IPPROTO_TCP, port: 1, anyPort: true}
	for _, c := range []struct {
		claim string
		p     packet
		info  xt.InfoAny
		want  answer
	}{
		{"our port", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{8472, 8472}}, yes},
		{"a range with our port", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{8000, 9000}}, yes},
		{"a higher port", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{9000, 9000}}, no},
		{"a higher range", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{9000, 9100}}, no},
		{"a lower range", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{0, 8471}}, no},
		{"all but our port", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{8472, 8472}, InvFlags: xt.UdpInvDestPorts}, no},
		{"all but another port", vxlan, &xt.Udp{SrcPorts: all, DstPorts: [2]uint16{53, 53}, InvFlags: xt.UdpInvDestPorts}, yes},
		{"our port from some ports", vxlan, &xt.Udp{SrcPorts: [2]uint16{1, 2}, DstPorts: [2]uint16{8472, 8472}}, perhaps},
		{"TCP", vxlan, &xt.Tcp{SrcPorts: all, DstPorts: all}, no},
		{"all ports of pods", pods, &xt.Tcp{SrcPorts: all, DstPorts: all}, yes},
		{"one port of pods", pods, &xt.Tcp{SrcPorts: all, DstPorts: [2]uint16{80, 80}}, no},
		{"some ports of pods", pods, &xt.Tcp{SrcPorts: all, DstPorts: [2]uint16{1, 1023}}, perhaps},
		{"pods' connections begin", pods, &xt.Tcp{SrcPorts: all, DstPorts: all, FlagsMask: 2, FlagsCmp: 2}, perhaps},
	} {
		if got := c.p.match(&expr.Match{Info: c.info}); got != c.want {
			t.Errorf("%s: %v, want %v", c.claim, got, c.want)
		}
	}
}

// TestWhatCannotBeJudgedLetsThrough: what may not match leaves the rule in doubt, and what somebody else decides the packet.
func TestWhatCannotBeJudgedLetsThrough(t *testing.T) {
	for _, e := range []expr.Any{&expr.Quota{}, &expr.Limit{}, &expr.Connlimit{}, &expr.Match{Name: "recent"}, &expr.Objref{Type: 2}} {
		w := walk{}
		if v, a := w.judge(e); v != nil || a != perhaps {
			t.Errorf("%T: %v, %v, want perhaps", e, v, a)
		}
	}
	const synproxy = 10 // NFT_OBJECT_SYNPROXY
	for _, e := range []expr.Any{&expr.Queue{}, &expr.SynProxy{}, &expr.Target{Name: "NFQUEUE"}, &expr.Objref{Type: synproxy}, &expr.Payload{OperationType: expr.PayloadWrite}} {
		w := walk{}
		v, a := w.judge(e)
		if v == nil {
			t.Errorf("%T decides nothing", e)
		} else if _, _ = w.verdict(v, a); !w.doubt {
			t.Errorf("%T: %v, %v, and no doubt", e, v, a)
		}
	}
}
