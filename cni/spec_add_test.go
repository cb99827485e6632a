package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
)

func errorRows() []row {
	return []row{
		{"2 Errors", "exit code 0 with success, another and one error object on stdout with failure", nil, func(t *testing.T, a act) {
			_, _, code := raw(t, a.conf(a.version, "net", ""), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere")
			if code == 0 {
				t.Error("exit code 0 with a failure")
			}
			a.do(t, a.ask("ADD", "")) // do and refuse look at the exit code and count documents
		}},
		{"E5", "an error has the configuration's cniVersion, code and msg", nil, func(t *testing.T, a act) {
			out, _, _ := raw(t, a.conf(a.version, "net", ""), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere")
			var e map[string]any
			must(t, json.Unmarshal([]byte(out), &e))
			if e["cniVersion"] != a.version || e["code"] != float64(types.ErrInvalidNetNS) || e["msg"] == "" {
				t.Errorf("the error is %s", out)
			}
		}},
		{"E4", "bad JSON is code 6, a semantic error 7, unreadable input 5", since("1.0.0"), func(t *testing.T, a act) {
			for text, code := range map[string]uint{
				"": types.ErrDecodingFailure, "{": types.ErrDecodingFailure, "[]": types.ErrDecodingFailure, `{"cniVersion":7,"name":"n"}`: types.ErrDecodingFailure,
				"null": types.ErrInvalidNetworkConfig, "{}": types.ErrInvalidNetworkConfig, a.conf(a.version, "net", `,"mtu":-1`): types.ErrInvalidNetworkConfig,
				a.conf(a.version, "net", `,"mtu":"x"`): types.ErrDecodingFailure,
			} {
				c := a.ask("ADD", "")
				c.conf = text
				a.refuse(t, c, code)
			}
			cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
			directory, err := os.Open("/")
			must(t, err)
			defer directory.Close()
			cmd.Env, cmd.Stdin = []string{"CNI_COMMAND=STATUS"}, directory
			out, err := cmd.Output()
			if err == nil || !strings.Contains(string(out), `"code": 5`) {
				t.Errorf("with a directory as standard input it says %s, %v", out, err)
			}
		}},
		{"E6", "codes that are ours begin at 100", since("1.0.0"), func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			a.refuse(t, a.ask("ADD", ""), codeAttached)
			if codeAttached < 100 || codeDiffers < 100 || codeTaken < 100 {
				t.Error("codes below 100 are the spec's")
			}
		}},
		{"E7", "no error says code 3: there is always something to clean up", since("1.0.0"), func(t *testing.T, a act) {
			a.refuse(t, a.ask("CHECK", `,"prevResult":{"cniVersion":"1.0.0"}`), types.ErrInvalidNetworkConfig) // [host.run] looks at every error
		}},
		{"E8", "what another moment can cure is code 11", nil, func(t *testing.T, a act) {
			must(t, os.Remove(a.file))
			a.refuse(t, a.ask("ADD", ""), types.ErrTryAgainLater, a.file)
		}},
	}
}

func safetyRows() []row {
	return []row{
		{"E9", "one JSON document only, the host's own namespace included", nil, func(t *testing.T, a act) {
			c := a.ask("ADD", "")
			c.netns = a.Path()
			a.refuse(t, c, types.ErrInvalidNetNS) // [host.run] counts
		}},
		{"E10", "DEL with the host's own namespace touches nothing of the host", nil, func(t *testing.T, a act) {
			before := text(t, a.Netns)
			c := a.ask("DEL", "")
			c.netns = a.Path() // and there is an eth0
			a.refuse(t, c, types.ErrInvalidNetNS)
			same(t, "the host", text(t, a.Netns), before)
		}},
		{"E11", "CNI_NETNS_OVERRIDE, which the spec does not know, does not let it into the host", since("1.0.0"), func(t *testing.T, a act) {
			for _, verb := range []string{"ADD", "DEL", "CHECK"} {
				c := a.ask(verb, "").with("CNI_NETNS_OVERRIDE", "1")
				c.netns = a.Path()
				a.refuse(t, c, types.ErrInvalidNetNS)
			}
		}},
		{"E12", "keys that are not known are left alone", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", `,"keyA":["some more"],"capabilities":{"portMappings":true},"ipMasq":true,"runtimeConfig":{"x":{"y":1}},"args":{"cni":{"z":1},"q":2}`))
		}},
		{"E14", "calls for different containers run at the same time", since("1.0.0"), func(t *testing.T, a act) {
			var all sync.WaitGroup
			errs := make([]error, 6)
			for i := range errs {
				c := a.add(fmt.Sprint("p", i), newSpace(t))
				all.Go(func() {
					answer, err := a.run(c)
					if errs[i] = err; err == nil && answer.err != nil {
						errs[i] = answer.err
					}
				})
			}
			all.Wait()
			for _, err := range errs {
				must(t, err)
			}
		}},
	}
}

func addRows() []row {
	return []row{
		{"2 ADD", "creates CNI_IFNAME inside CNI_NETNS", nil, func(t *testing.T, a act) {
			c := a.ask("ADD", "")
			c.ifname = "net7"
			a.do(t, c)
			must(t, a.pod.Do(func() error { _, err := netlink.LinkByName("net7"); return err }))
		}},
		{"2 ADD", "an interface of that name in the container is an error", nil, func(t *testing.T, a act) {
			must(t, a.pod.Do(func() error { return plant("eth0") }))
			a.refuse(t, a.ask("ADD", ""), types.ErrInternal, "already has an interface eth0")
		}},
		{"2 ADD", "one container is added to a network more than once by other interface names", nil, func(t *testing.T, a act) {
			for _, name := range []string{"eth0", "eth1", "eth2"} {
				c := a.ask("ADD", "")
				c.ifname = name
				a.do(t, c)
			}
			same(t, "the default routes", defaults(t, a.pod), "dev eth0\ndev eth1 metric\ndev eth2 metric")
		}},
		{"A1", "a second ADD of a live attachment fails, one after a failed ADD works", nil, func(t *testing.T, a act) {
			a.refuse(t, a.ask("ADD", `,"routes":[{"dst":"192.0.2.0/24","gw":"203.0.113.1"}]`), types.ErrInternal, "192.0.2.0/24")
			a.do(t, a.ask("ADD", ""))
			before, podBefore := text(t, a.Netns), text(t, a.pod)
			a.refuse(t, a.ask("ADD", ""), codeAttached)
			same(t, "the host", text(t, a.Netns), before)
			same(t, "the pod", text(t, a.pod), podBefore)
		}},
		{"A1", "an ADD whose result nobody could read leaves nothing", since("1.0.0"), func(t *testing.T, a act) {
			before := text(t, a.Netns)
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			must(t, err)
			defer full.Close()
			cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
			cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + a.pod.Path()}
			cmd.Stdin, cmd.Stdout = strings.NewReader(a.conf(a.version, "net", "")), full
			if err := a.Do(cmd.Run); err == nil {
				t.Error("exit code 0")
			}
			same(t, "the host", text(t, a.Netns), before)
		}},
		{"A2", "a prevResult that cannot be read is code 7, and nothing was made", nil, func(t *testing.T, a act) {
			before := text(t, a.Netns)
			for _, bad := range []string{`{"cniVersion":"9.9.9"}`, `{"ips":[{"address":"x"}]}`, `{"interfaces":7}`} {
				a.refuse(t, a.ask("ADD", prev(bad)), types.ErrInvalidNetworkConfig, "prevResult")
			}
			same(t, "the host", text(t, a.Netns), before)
			a.do(t, a.ask("ADD", ""))
		}},
		{"A2", "a prevResult is kept, and ours put behind it", nil, func(t *testing.T, a act) { joins(t, a) }},
		{"A3", "an IPAM plugin that fails at ADD gets a DEL", nil, func(t *testing.T, a act) {
			f := newFake(t, fails("ADD"))
			before := text(t, a.Netns)
			a.refuse(t, a.ask("ADD", `,"ipam":{"type":"fake"}`).with("CNI_PATH", f.dir), 142, "no luck")
			same(t, "the verbs", f.asked(t), "ADD DEL")
			same(t, "the host", text(t, a.Netns), before)
		}},
	}
}

// joins runs an ADD behind another plugin.
func joins(t *testing.T, a act) {
	version := ""
	if a.version < "1" {
		version = `"version":"4",`
	}
	former := `{"cniVersion":"` + a.version + `","interfaces":[{"name":"dummy0","mac":"02:00:00:00:00:01"},{"name":"net1","sandbox":"/run/netns/x"}],` +
		`"ips":[{` + version + `"interface":1,"address":"192.0.2.9/24","gateway":"192.0.2.1"}],"routes":[{"dst":"198.51.100.0/24","gw":"192.0.2.1"}],` +
		`"dns":{"nameservers":["192.0.2.53"]}}`
	r := parsed(t, a.do(t, a.ask("ADD", prev(former))))
	if len(r.Interfaces) != 5 || len(r.IPs) != 2 || len(r.Routes) != 2 {
		t.Fatalf("the result has %d interfaces, %d addresses, %d routes: %v", len(r.Interfaces), len(r.IPs), len(r.Routes), r)
	}
	same(t, "the former interface", r.Interfaces[0].Name+" "+r.Interfaces[*r.IPs[0].Interface].Name, "dummy0 net1")
	same(t, "the former address", r.IPs[0].Address.String()+" "+r.IPs[0].Gateway.String(), "192.0.2.9/24 192.0.2.1")
	same(t, "the former route", r.Routes[0].Dst.String(), "198.51.100.0/24")
	same(t, "the former resolver", fmt.Sprint(r.DNS.Nameservers), "[192.0.2.53]")
	own := r.Interfaces[*r.IPs[1].Interface]
	same(t, "the interface of our address", own.Name+" in "+own.Sandbox, "eth0 in "+a.pod.Path())
	same(t, "our route", r.Routes[1].Dst.String(), "0.0.0.0/0")
	if a.version >= "0.4.0" {
		text, err := json.Marshal(r)
		must(t, err)
		c := a.ask("CHECK", "")
		c.conf = a.conf("1.1.0", "net", prev(string(text)))
		a.do(t, c)
	}
}

// defaults are a namespace's default routes, the best first.
func defaults(t *testing.T, n *lab.Netns) string {
	t.Helper()
	out, err := n.Output(nil, needed(t, "ip"), "route", "show", "default")
	must(t, err)
	var lines []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // default via 10.5.1.1 dev eth1 metric 2050
		line := strings.Join(f[3:5], " ")
		if len(f) > 5 {
			line += " " + f[5]
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}
