package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
)

func resultRows() []row {
	return []row{
		{"A4", "every interface is listed: on the host without a sandbox, in the pod with CNI_NETNS as it was given", nil, func(t *testing.T, a act) {
			c := a.ask("ADD", "")
			c.netns = strings.Replace(c.netns, "/run/netns", "/run/./netns", 1)
			r := parsed(t, a.do(t, c))
			got := ""
			for _, i := range r.Interfaces {
				got += fmt.Sprintf("%s in %q\n", i.Name, i.Sandbox)
			}
			same(t, "the interfaces", got, fmt.Sprintf("ovl0 in \"\"\n%s in \"\"\neth0 in %q\n", linkOf("net", "c1", "eth0"), c.netns))
		}},
		{"5 ADD Success", "mac and mtu are the interfaces'", since("1.1.0"), func(t *testing.T, a act) {
			r := parsed(t, a.do(t, a.ask("ADD", "")))
			for i, where := range []interface{ Do(func() error) error }{a.Netns, a.Netns, a.pod} {
				must(t, where.Do(func() error {
					l, err := netlink.LinkByName(r.Interfaces[i].Name)
					if err == nil {
						same(t, "interface "+r.Interfaces[i].Name, fmt.Sprintln(r.Interfaces[i].Mac, r.Interfaces[i].Mtu), fmt.Sprintln(l.Attrs().HardwareAddr, l.Attrs().MTU))
					}
					return err
				}))
			}
		}},
		{"A5", "an address has host bits and length, its gateway, and the index of the pod's interface", nil, func(t *testing.T, a act) {
			r := parsed(t, a.do(t, a.ask("ADD", `,"args":{"cni":{"ips":["10.5.1.77"]}}`)))
			ip := r.IPs[0]
			same(t, "the address", fmt.Sprint(&ip.Address, " ", ip.Gateway, " ", r.Interfaces[*ip.Interface].Name), "10.5.1.77/24 10.5.1.1 eth0")
			same(t, "the route", fmt.Sprint(&r.Routes[0].Dst, " ", r.Routes[0].GW), "0.0.0.0/0 10.5.1.1")
		}},
		{"A6", "chained plugins find the bridge first, the pod's address by an interface of its name, and the veth's other end", nil, func(t *testing.T, a act) {
			r := parsed(t, a.do(t, a.ask("ADD", "")))
			same(t, "interface 0", r.Interfaces[0].Name, bridgeName)
			inner := r.Interfaces[*r.IPs[0].Interface]
			if inner.Name != "eth0" || inner.Sandbox == "" {
				t.Errorf("the address is of %v", inner)
			}
			must(t, a.Do(func() error {
				l, err := netlink.LinkByName(r.Interfaces[1].Name)
				if err == nil && l.Type() != "veth" {
					t.Errorf("%s is a %s", r.Interfaces[1].Name, l.Type())
				}
				return err
			}))
		}},
		{"A7", "ips[].version is there before 1.0.0 and not after", nil, func(t *testing.T, a act) {
			var r struct{ IPs []map[string]any }
			must(t, json.Unmarshal([]byte(a.do(t, a.ask("ADD", ""))), &r))
			if version, ok := r.IPs[0]["version"]; ok != (a.version < "1") || ok && version != "4" {
				t.Errorf("ips[0] is %v", r.IPs[0])
			}
		}},
		{"5 ADD Success", "dns is the configuration's", nil, func(t *testing.T, a act) {
			const dns = `{"nameservers":["10.96.0.10"],"domain":"example.org","search":["a","b"],"options":["ndots:5"]}`
			var r struct{ DNS json.RawMessage }
			must(t, json.Unmarshal([]byte(a.do(t, a.ask("ADD", `,"dns":`+dns))), &r))
			same(t, "dns", normal(t, string(r.DNS)), normal(t, dns))
		}},
	}
}

func argumentRows() []row {
	return []row{
		{"R1", "keys count in any case", nil, func(t *testing.T, a act) {
			c := a.ask("ADD", `,"RuntimeConfig":{"IPs":["10.5.1.55/24"],"Mac":"02:00:5E:10:00:01","PortMappings":[{"HostPort":80}]},"MTU":1300`)
			r := parsed(t, a.do(t, c))
			same(t, "the pod", fmt.Sprint(&r.IPs[0].Address, " ", r.Interfaces[2].Mac), "10.5.1.55/24 02:00:5e:10:00:01")
		}},
		{"R2", "unknown CNI_ARGS are left alone in any order, with and without IgnoreUnknown", nil, func(t *testing.T, a act) {
			args := []string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=a-b", "K8S_POD_INFRA_CONTAINER_ID=0123", "K8S_POD_UID=", "IP=10.5.1.66", "MAC=02:00:5e:10:00:02"}
			for range 3 {
				rand.Shuffle(len(args), func(i, j int) { args[i], args[j] = args[j], args[i] })
				r := parsed(t, a.do(t, a.ask("ADD", "").with("CNI_ARGS", strings.Join(args, ";"))))
				same(t, "the pod under "+strings.Join(args, ";"), fmt.Sprint(&r.IPs[0].Address, " ", r.Interfaces[2].Mac), "10.5.1.66/24 02:00:5e:10:00:02")
				a.do(t, a.ask("DEL", "").with("CNI_ARGS", strings.Join(args, ";")))
			}
			a.do(t, a.ask("ADD", "").with("CNI_ARGS", "FOO=BAR;ABC=123")) // the spec's own example
		}},
		{"2 Parameters", "CNI_ARGS that are no pairs are code 4 and named", nil, func(t *testing.T, a act) {
			before := text(t, a.Netns)
			for _, bad := range []string{"x", "IP=10.5.1.9;x", "a=b; c"} {
				a.refuse(t, a.ask("ADD", "").with("CNI_ARGS", bad), types.ErrInvalidEnvironmentVariables, "CNI_ARGS")
			}
			same(t, "the host", text(t, a.Netns), before)
		}},
		{"R3", "runtimeConfig goes before args.cni, that before CNI_ARGS", nil, func(t *testing.T, a act) {
			const config, args = `,"runtimeConfig":{"ips":["10.5.1.11/24"]}`, `,"args":{"cni":{"ips":["10.5.1.12"]}}`
			for more, want := range map[string]string{config + args: "[10.5.1.11]", args: "[10.5.1.12]", "": "[10.5.1.13]"} {
				same(t, "the address", a.ips(t, a.ask("ADD", more).with("CNI_ARGS", "IP=10.5.1.13")), want)
				a.do(t, a.ask("DEL", ""))
			}
		}},
		{"R4", "what runtimes send to others is left alone", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", `,"runtimeConfig":{"infinibandGUID":"x","deviceID":"0000:00:00.0","aliases":{"net":["a"]},"cgroupPath":"/x","ipRanges":[[{"subnet":"10.9.0.0/24"}]],`+
				`"bandwidth":{"IngressRate":1,"IngressBurst":4294967295},"dns":{"Servers":["192.0.2.1"],"Searches":[],"Options":[]},"portMappings":[{"HostPort":80,"ContainerPort":80,"Protocol":"tcp","HostIP":""}]}`))
		}},
	}
}
