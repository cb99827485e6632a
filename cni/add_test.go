package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// The same attachment in the words of each version: prevResult of whatever plugin comes next in the list.
const (
	result03 = `{"cniVersion":"%s","interfaces":[{"name":"ovl0","mac":"BRIDGEMAC"},{"name":"LINK","mac":"LINKMAC"},` +
		`{"name":"eth0","mac":"PODMAC","sandbox":"NETNS"}],"ips":[{"version":"4","interface":2,"address":"ADDR/24","gateway":"10.5.1.1"}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"10.5.1.1"}],"dns":{"nameservers":["10.5.1.1"]}}`
	// The library writes the mtu of 1.1.0 with 1.0.0 too; who reads 1.0.0 leaves unknown keys alone.
	result10 = `{"cniVersion":"%s","interfaces":[{"name":"ovl0","mac":"BRIDGEMAC","mtu":1430},{"name":"LINK","mac":"LINKMAC","mtu":1430},` +
		`{"name":"eth0","mac":"PODMAC","mtu":1430,"sandbox":"NETNS"}],"ips":[{"interface":2,"address":"ADDR/24","gateway":"10.5.1.1"}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"10.5.1.1"}],"dns":{"nameservers":["10.5.1.1"]}}`
)

func TestResultHasTheShapeOfItsVersion(t *testing.T) {
	h := newHost(t, "10.5.1.0/24")
	for version, want := range map[string]string{
		"0.3.1": fmt.Sprintf(result03, "0.3.1"),
		"0.4.0": fmt.Sprintf(result03, "0.4.0"),
		"1.0.0": fmt.Sprintf(result10, "1.0.0"),
		"1.1.0": fmt.Sprintf(result10, "1.1.0"),
	} {
		t.Run(version, func(t *testing.T) {
			pod := newSpace(t)
			c := h.add("c"+version, pod)
			c.conf = h.conf(version, "net", `,"dns":{"nameservers":["10.5.1.1"]},"capabilities":{"portMappings":true},"unknown":[1]`)
			got := h.do(t, c)
			link := linkOf("net", c.container, "eth0")
			var l netlink.Link
			must(t, h.Do(func() (err error) { l, err = netlink.LinkByName(link); return err }))
			if len(l.Attrs().AltNames) != 1 {
				t.Fatalf("altnames of %s: %q, want one", link, l.Attrs().AltNames)
			}
			addr, ok := subnet.ParseAltName(l.Attrs().AltNames[0])
			if !ok {
				t.Fatalf("altname %q is no address", l.Attrs().AltNames[0])
			}
			want := strings.NewReplacer("BRIDGEMAC", bridgeMAC, "LINKMAC", l.Attrs().HardwareAddr.String(), "LINK", link,
				"PODMAC", fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", addr.AsSlice()[0], addr.AsSlice()[1], addr.AsSlice()[2], addr.AsSlice()[3]),
				"NETNS", pod.Path(), "ADDR", addr.String()).Replace(want)
			same(t, "the result", normal(t, got), normal(t, want))
		})
	}
}

// normal sorts the keys of a JSON text.
func normal(t *testing.T, s string) string {
	t.Helper()
	var v any
	must(t, json.Unmarshal([]byte(s), &v))
	text, err := json.MarshalIndent(v, "", " ")
	must(t, err)
	return string(text)
}

func TestADDMakesWhatItsResultSays(t *testing.T) {
	for _, subnets := range [][]string{{"10.5.1.0/24"}, {"10.5.1.0/24", "fd00:5:1::/64"}, {"fd00:5:1::/64"}} {
		t.Run(strings.Join(subnets, " "), func(t *testing.T) {
			h, pod := newHost(t, subnets...), newSpace(t)
			before := text(t, h.Netns)
			r := h.attach(t, h.add("c1", pod))
			if len(r.IPs) != len(subnets) || len(r.Routes) != len(subnets) {
				t.Fatalf("%d addresses and %d routes, want %d of each: %v", len(r.IPs), len(r.Routes), len(subnets), r)
			}
			checkState(t, h, pod, r, before)
		})
	}
}

// checkState compares what the kernel holds on both sides with the result of an ADD of net/c1/eth0.
func checkState(t *testing.T, h *host, pod *lab.Netns, r *current.Result, before string) {
	t.Helper()
	link := linkOf("net", "c1", "eth0")
	mac := subnet.AddrMAC(addrs(r)[0])
	altnames, ips, routes := "", "", ""
	for i, a := range addrs(r) {
		if !h.node.Subnets[i].Contains(a) || a == h.node.Gateways[i] || a == h.node.Subnets[i].Addr() {
			t.Errorf("address %s is not one for pods of %s", a, h.node.Subnets[i])
		}
		if *r.IPs[i].Interface != 2 || r.IPs[i].Gateway.String() != h.node.Gateways[i].String() {
			t.Errorf("address %s is of interface %d with gateway %s, want 2, %s", a, *r.IPs[i].Interface, r.IPs[i].Gateway, h.node.Gateways[i])
		}
		altnames += " altname " + strings.ReplaceAll(a.String(), ":", "-")
		ips += fmt.Sprintf(" %s/%d", a, h.node.Subnets[i].Bits())
		routes += fmt.Sprintf("default via %s dev eth0\n", h.node.Gateways[i])
	}
	same(t, "the pod", text(t, pod), fmt.Sprintf("%seth0 veth %s mtu %d up%s", routes, mac, mtu, ips))
	same(t, "the host", text(t, h.Netns), fmt.Sprintf("%s\n%s veth %s mtu %d up master ovl0 hairpin on alias net/c1/eth0%s",
		before, link, r.Interfaces[1].Mac, mtu, altnames))
}
