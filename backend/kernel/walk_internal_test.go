package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
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

// TestAReadingDuringWhichSomethingChangedIsNotSettled: half of somebody's change can look like anything.
func TestAReadingDuringWhichSomethingChangedIsNotSettled(t *testing.T) {
	lab.Need(t)
	k, err := Open(Options{Node: "h1", VXLAN: "overlay.1", Bridge: "ovl0", NoUplink: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	nft := func(script string) error { return exec.Command("nft", script).Run() }
	t.Cleanup(func() { _ = nft("delete table ip mine") })
	const rules = 500 // to read them takes longer than the other one's pauses
	if err := nft("table ip mine { set s { type ipv4_addr; }; chain fw { type filter hook forward priority 5; " + strings.Repeat("tcp dport 80 accept; ", rules) + " }; }"); err != nil {
		t.Fatal(err)
	}
	probes := []probe{{packet: packet{src: netip.MustParseAddr("10.5.34.2"), dst: netip.MustParseAddr("10.5.35.2")}, hook: unix.NF_INET_FORWARD}}
	if _, settled, err := k.lookOnce(probes); !settled || err != nil {
		t.Errorf("nobody changed anything: %v, %v", settled, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_ = nft("add element ip mine s { 10.0.0.1 }; delete element ip mine s { 10.0.0.1 }")
		}
	}()
	err = lab.Eventually("a reading meets a change", func() error {
		if _, settled, err := k.lookOnce(probes); settled || err != nil {
			return fmt.Errorf("settled: %v, %w", settled, err)
		}
		return nil
	})
	stop()
	<-ended
	if err != nil {
		t.Error(err)
	}
}
