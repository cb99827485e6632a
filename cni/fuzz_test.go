package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/subnet"
)

// FuzzPlugin runs the program's whole way from its environment and input to its answer, in a namespace without any link.
func FuzzPlugin(f *testing.F) {
	const conf = `{"cniVersion":"1.1.0","name":"net","type":"overlay","nodeFile":"/nowhere"`
	for _, seed := range [][3]string{
		{"ADD", conf + `}`, "IP=10.5.1.9;MAC=02:00:5e:10:00:01"}, {"ADD", conf + `,"prevResult":{"cniVersion":"1.1.0"}}`, "IgnoreUnknown=1"},
		{"ADD", conf + `,"delegate":{"type":"bridge"}}`, ""}, {"ADD", conf + `,"runtimeConfig":{"ips":["::"]},"args":{"cni":{"mac":"x"}}}`, ";"},
		{"DEL", conf + `}`, "x"}, {"DEL", conf + `,"ipam":{"type":"../x"}}`, ""}, {"DEL", conf + `,"delegate":{"ipam":[],"type":7}}`, ""},
		{"CHECK", conf + `,"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.5.1.2/24","interface":9}]}}`, ""},
		{"STATUS", conf + `}`, ""}, {"STATUS", conf + `,"bridge":"lo"}`, ""}, {"GC", conf + `,"cni.dev/valid-attachments":[]}`, ""},
		{"GC", conf + `,"cni.dev/valid-attachments":[{"containerID":7}]}`, ""}, {"VERSION", `{"cniVersion":"0.3.1"}`, ""}, {"VERSION", "\xff", ""},
		{"", "", ""}, {"FROB", "{}", ""}, {"ADD", "null", ""}, {"ADD", `{"name":"net","cniVersion":null}`, ""}, {"DEL", `{"cniVersion":"1.0.0","name":"n","routes":[null]}`, ""},
	} {
		f.Add(seed[0], seed[1], seed[2], "c1", "eth0")
	}
	f.Fuzz(func(t *testing.T, command, conf, args, container, ifname string) {
		env := map[string]string{
			"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_ARGS": args, "CNI_PATH": "/nowhere", "CNI_NETNS": "/nowhere/netns",
		}
		var out, complaint bytes.Buffer
		code := run(func(key string) string { return env[key] }, strings.NewReader(conf), &out, &complaint)
		documents := 0
		for dec := json.NewDecoder(&out); ; documents++ {
			var document json.RawMessage
			if err := dec.Decode(&document); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%q with %q: no JSON: %v", command, conf, err)
			}
			if err := properError(call{command: command}, document); code != 0 && err != nil {
				t.Error(err)
			}
		}
		want := 0
		if code != 0 || command == "VERSION" {
			want = 1
		}
		if documents != want {
			t.Errorf("%q with %q: exit code %d and %d documents", command, conf, code, documents)
		}
		if code == 0 && command == "ADD" {
			t.Errorf("an ADD without a namespace works: %q", conf)
		}
	})
}

// FuzzWish reads what is asked for. What is granted is a pod's address of this host, one of each family.
func FuzzWish(f *testing.F) {
	for _, seed := range [][2]string{
		{`{}`, ""}, {`{"runtimeConfig":{"ips":["10.5.1.7/24"],"mac":"02:00:5e:10:00:01"}}`, "IP=10.5.1.8"}, {`{"args":{"cni":{"ips":["fd00:5:1::9","10.5.1.255"]}}}`, ""},
		{`{}`, "IP=10.5.1.7,fd00:5:1::7;MAC=0a:58:0a:05:01:07"}, {`{}`, "IP=::ffff:10.5.1.7"}, {`{}`, "IP=fe80::1%eth0"}, {`{}`, "IP=;MAC=;=;"}, {`{}`, "IP=10.5.1.7=8"},
		{`{"ipam":{"type":"static"},"runtimeConfig":{"ips":["x"]}}`, "IP=x"}, {`{"RUNTIMECONFIG":{"IPS":["10.5.1.2"]}}`, "ip=10.5.1.3"},
	} {
		f.Add(seed[0], seed[1])
	}
	subnets := []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")}
	node := subnet.NodeFile{Subnets: subnets, Gateways: []netip.Addr{subnet.Gateway(subnets[0]), subnet.Gateway(subnets[1])}}
	f.Fuzz(func(t *testing.T, text, args string) {
		c, err := parseConf(request{input: []byte(text)})
		if err != nil || c.check() != nil {
			return // FuzzConf's
		}
		w, err := wishOf(c, args, node)
		var coded *types.Error
		if err != nil {
			if !errors.As(err, &coded) || coded.Code != types.ErrInvalidNetworkConfig && coded.Code != types.ErrInvalidEnvironmentVariables {
				t.Errorf("%q %q: %v", text, args, err)
			}
			return
		}
		families := map[bool]bool{}
		for _, ip := range w.ips {
			if families[ip.Is4()] || ip.Zone() != "" || ip == node.Gateways[0] || ip == node.Gateways[1] || !subnets[0].Contains(ip) && !subnets[1].Contains(ip) {
				t.Errorf("%q %q: granted %v", text, args, w.ips)
			}
			families[ip.Is4()] = true
		}
		if w.mac != (subnet.MAC{}) && !w.mac.IsUnicast() {
			t.Errorf("%q %q: granted MAC %s", text, args, w.mac)
		}
	})
}
