package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/e2e/lab"
)

// hostLocalAct is a host whose addresses Debian's host-local gives out, from a directory of the test's own.
type hostLocalAct struct {
	act
	keys, data string
}

func newHostLocal(t *testing.T, subnets ...string) hostLocalAct {
	t.Helper()
	theirs(t, hostLocal)
	dir := t.TempDir()
	return hostLocalAct{
		act:  act{newHost(t, subnets...), newSpace(t), "1.0.0"},
		keys: fmt.Sprintf(`,"ipam":{"type":"host-local","dataDir":%q}`, dir), data: filepath.Join(dir, "net"),
	}
}

func (a hostLocalAct) ask(verb, more string) call {
	return a.act.ask(verb, a.keys+more).with("CNI_PATH", debian)
}

// reserved are the addresses that host-local holds.
func (a hostLocalAct) reserved(t *testing.T) string {
	t.Helper()
	files, err := os.ReadDir(a.data)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		if f.Name() != "lock" && !strings.HasPrefix(f.Name(), "last_reserved_ip") {
			all = append(all, f.Name())
		}
	}
	return strings.Join(all, " ")
}

func TestHostLocalGivesAddressesOfOurSubnets(t *testing.T) {
	for _, subnets := range [][]string{{"10.5.1.0/24"}, {"10.5.1.0/24", "fd00:5:1::/64"}, {"fd00:5:1::/64"}} {
		a := newHostLocal(t, subnets...)
		before := text(t, a.Netns)
		result := a.do(t, a.ask("ADD", ""))
		r := parsed(t, result)
		checkState(t, a.host, a.pod, r, before) // and the kernel holds the names, as without an IPAM plugin
		var want []string
		for _, ip := range addrs(r) {
			want = append(want, ip.String())
		}
		same(t, "what host-local holds", a.reserved(t), strings.Join(want, " "))
		if want[0] != "10.5.1.2" && want[0] != "fd00:5:1::2" {
			t.Errorf("the first address is %s: it must be the first after the gateway", want[0])
		}
		a.do(t, a.ask("CHECK", prev(result)))
		a.do(t, a.ask("DEL", prev(result)))
		same(t, "what host-local holds after DEL", a.reserved(t), "")
		same(t, "the host", text(t, a.Netns), before)
		a.do(t, a.ask("DEL", ""))
	}
}

func TestHostLocalReleasesWithoutANodeFile(t *testing.T) {
	a := newHostLocal(t, "10.5.1.0/24", "fd00:5:1::/64")
	before := text(t, a.Netns)
	a.do(t, a.ask("ADD", ""))
	must(t, os.Remove(a.file))
	c := a.ask("DEL", "")
	c.netns = ""
	a.do(t, c)
	same(t, "what host-local holds", a.reserved(t), "")
	same(t, "the host", text(t, a.Netns), before)
}

func TestHostLocalReleasesWhenTheADDFailsLater(t *testing.T) {
	a := newHostLocal(t, "10.5.1.0/24")
	before := text(t, a.Netns)
	a.refuse(t, a.ask("ADD", `,"routes":[{"dst":"192.0.2.0/24","gw":"203.0.113.1"}]`), types.ErrInternal, "192.0.2.0/24")
	same(t, "what host-local holds", a.reserved(t), "")
	must(t, a.Do(func() error { return plant("thief", "10.5.1.4") }))
	a.refuse(t, a.ask("ADD", `,"args":{"cni":{"ips":["10.5.1.4"]}}`), codeTaken, "thief") // host-local does not know of it
	same(t, "what host-local holds", a.reserved(t), "")
	must(t, a.Do(func() error { return withLink("thief", netlink.LinkDel) }))
	same(t, "the host", text(t, a.Netns), before)
	a.do(t, a.ask("ADD", ""))
}

func TestASecondADDKeepsTheAddressOfTheLiveAttachment(t *testing.T) {
	a := newHostLocal(t, "10.5.1.0/24")
	result := a.do(t, a.ask("ADD", ""))
	held := a.reserved(t)
	a.refuse(t, a.ask("ADD", ""), codeAttached)
	same(t, "what host-local holds", a.reserved(t), held)
	a.do(t, a.ask("CHECK", prev(result)))
}

func TestWishesGoToTheIPAMPlugin(t *testing.T) {
	a := newHostLocal(t, "10.5.1.0/24")
	for name, c := range map[string]call{
		"runtimeConfig":                  a.ask("ADD", `,"runtimeConfig":{"ips":["10.5.1.44/24"]}`),
		"args.cni":                       a.ask("ADD", `,"args":{"cni":{"ips":["10.5.1.44"]}}`),
		"CNI_ARGS with keys of others":   a.ask("ADD", "").with("CNI_ARGS", "MAC=02:00:5e:10:00:01;IP=10.5.1.44;K8S_POD_NAME=x"),
		"CNI_ARGS that end in semicolon": a.ask("ADD", "").with("CNI_ARGS", "IP=10.5.1.44;"),
	} {
		t.Run(name, func(t *testing.T) {
			same(t, "the address", a.ips(t, c), "[10.5.1.44]")
			a.do(t, a.ask("DEL", "").with("CNI_ARGS", "MAC=02:00:5e:10:00:01;FOO=BAR"))
			same(t, "what host-local holds", a.reserved(t), "")
		})
	}
}

func TestRangesOfTheAdminAreKept(t *testing.T) {
	a := newHostLocal(t, "10.5.1.0/24")
	a.keys = strings.Replace(a.keys, `"type"`, `"ranges":[[{"subnet":"10.5.1.0/24","rangeStart":"10.5.1.200","rangeEnd":"10.5.1.201"}]],"type"`, 1)
	same(t, "the address", a.ips(t, a.ask("ADD", "")), "[10.5.1.200]")
}

func TestStaticAddresses(t *testing.T) {
	theirs(t, "static")
	a := act{newHost(t, "10.5.1.0/24"), newSpace(t), "1.0.0"}
	before := text(t, a.Netns)
	const keys = `,"ipam":{"type":"static","addresses":[{"address":"10.5.1.40/24"},{"address":"198.51.100.4/28","gateway":"198.51.100.1"}],` +
		`"routes":[{"dst":"192.0.2.0/24"}],"dns":{"nameservers":["192.0.2.53"]}}`
	result := a.do(t, a.ask("ADD", keys).with("CNI_PATH", debian))
	r := parsed(t, result)
	same(t, "the addresses", fmt.Sprint(addrs(r), r.IPs[0].Gateway), "[10.5.1.40 198.51.100.4] 10.5.1.1")
	same(t, "the resolver", fmt.Sprint(r.DNS.Nameservers), "[192.0.2.53]")
	if got := text(t, a.Netns); !strings.Contains(got, "altname 10.5.1.40 altname 198.51.100.4") {
		t.Errorf("the host is\n%s\nwant the addresses as names", got)
	}
	a.do(t, a.ask("CHECK", keys+prev(result)).with("CNI_PATH", debian))
	c := a.add("c2", newSpace(t))
	c.conf = a.conf("1.0.0", "net", keys)
	a.refuse(t, c.with("CNI_PATH", debian), codeTaken, "net/c1/eth0") // static itself would have given it twice
	a.do(t, a.ask("DEL", keys).with("CNI_PATH", debian))
	same(t, "the host", text(t, a.Netns), before)
}

func TestStaticAddressesThatTheRuntimeGives(t *testing.T) {
	theirs(t, "static")
	a := act{newHost(t, "10.5.1.0/24"), newSpace(t), "1.0.0"}
	c := a.ask("ADD", `,"ipam":{"type":"static"},"runtimeConfig":{"ips":["198.51.100.9/24"]}`).with("CNI_PATH", debian)
	same(t, "the address", a.ips(t, c), "[198.51.100.9]") // out of our range: static's matter
}

// TestWhereaboutsIsToldOurSubnets, in its own words, unless the admin has said which.
func TestWhereaboutsIsToldOurSubnets(t *testing.T) {
	for _, c := range []struct{ keys, want string }{
		{"", `"ipRanges":[{"range":"10.5.1.0/24","range_start":"10.5.1.2"},{"range":"fd00:5:1::/64","range_start":"fd00:5:1::2"}],"type":"whereabouts"}`},
		{`,"range":"10.5.1.128/25"`, `"type":"whereabouts","range":"10.5.1.128/25"}`},
		{`,"ipRanges":[{"range":"10.5.1.128/25"}]`, `"type":"whereabouts","ipRanges":[{"range":"10.5.1.128/25"}]}`},
	} {
		f := newFake(t, gives("10.5.1.200/24"))
		must(t, os.Rename(filepath.Join(f.dir, "fake"), filepath.Join(f.dir, whereabouts)))
		a := act{newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t), "1.0.0"}
		keys := `,"ipam":{"type":"whereabouts"` + c.keys + `}`
		same(t, "the address", a.ips(t, a.ask("ADD", keys).with("CNI_PATH", f.dir)), "[10.5.1.200]")
		for _, verb := range []string{"ADD", "DEL"} {
			if verb == "DEL" {
				a.do(t, a.ask("DEL", keys).with("CNI_PATH", f.dir))
			}
			if got := contents(t, filepath.Join(f.dir, verb+".json")); !strings.Contains(got, c.want) {
				t.Errorf("%s of whereabouts is told\n%s\nwant in it\n%s", verb, got, c.want)
			}
		}
	}
}

// TestDHCP: Debian's plugin asks a server on the bridge, through the interface that is being attached, and releases in the end.
func TestDHCP(t *testing.T) {
	theirs(t, "dhcp")
	a := act{newHost(t, "10.5.1.0/24"), newSpace(t), "1.0.0"}
	before := text(t, a.Netns)
	dir := t.TempDir()
	conf, leases, socket := filepath.Join(dir, "udhcpd.conf"), filepath.Join(dir, "leases"), filepath.Join(dir, "dhcp.sock")
	must(t, os.WriteFile(leases, nil, 0o600))
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "interface %s\nstart 10.5.1.50\nend 10.5.1.59\nlease_file %s\npidfile %s/pid\noption subnet 255.255.255.0\noption router 10.5.1.1\noption lease 3600\n", bridgeName, leases, dir), 0o600))
	serve := func(name string, args ...string) {
		cmd := exec.Command(needed(t, name), args...)
		must(t, a.Do(cmd.Start))
		t.Cleanup(func() { _ = errors.Join(cmd.Process.Kill(), cmd.Wait()) })
	}
	serve("busybox", "udhcpd", "-f", conf)
	serve(filepath.Join(debian, "dhcp"), "daemon", "-socketpath", socket)
	must(t, lab.Eventually("the daemon of dhcp listens", func() error {
		_, err := os.Stat(socket)
		return err
	}))
	keys := fmt.Sprintf(`,"ipam":{"type":"dhcp","daemonSocketPath":%q}`, socket)
	result := a.do(t, a.ask("ADD", keys).with("CNI_PATH", debian))
	r := parsed(t, result)
	given := addrs(r)[0]
	if last := given.As4()[3]; last < 50 || last > 59 || r.IPs[0].Gateway.String() != "10.5.1.1" {
		t.Errorf("the pod has %s by %s", given, r.IPs[0].Gateway)
	}
	if got := text(t, a.Netns); !strings.Contains(got, "altname "+given.String()) {
		t.Errorf("the host is\n%s\nwant the address as a name", got)
	}
	a.do(t, a.ask("CHECK", keys+prev(result)).with("CNI_PATH", debian))
	a.do(t, a.ask("DEL", keys).with("CNI_PATH", debian))
	same(t, "the host", text(t, a.Netns), before)
}

// delegating is what an admin of flannel has in their list.
func delegating(t *testing.T, more string) (act, func(verb, more string) call) {
	t.Helper()
	theirs(t, "bridge", hostLocal)
	a := act{newHost(t, "10.5.1.0/24"), newSpace(t), "1.0.0"}
	dir := t.TempDir()
	return a, func(verb, prev string) call {
		return a.ask(verb, fmt.Sprintf(`,"delegate":{"bridge":"cni0","ipam":{"dataDir":%q}%s}%s`, dir, more, prev)).with("CNI_PATH", debian)
	}
}

func TestDelegateToBridgeAsFlannelDoes(t *testing.T) {
	a, ask := delegating(t, `,"hairpinMode":true,"isDefaultGateway":true`)
	result := a.do(t, ask("ADD", ""))
	r := parsed(t, result)
	same(t, "the address", fmt.Sprint(addrs(r), r.IPs[0].Gateway, r.Interfaces[0].Name), "[10.5.1.2] 10.5.1.1cni0")
	if got := text(t, a.Netns); !strings.Contains(got, "cni0 bridge") || !strings.Contains(got, "10.5.1.1/24") || !strings.Contains(got, "hairpin on") {
		t.Errorf("the host is\n%s", got)
	}
	if got := text(t, a.pod); !strings.Contains(got, "mtu 1430 up 10.5.1.2/24") || !strings.Contains(got, "default via 10.5.1.1") {
		t.Errorf("the pod is\n%s", got)
	}
	a.do(t, ask("CHECK", prev(result)))
	must(t, os.Remove(a.file)) // flannel's plugin cannot say what to delete without its scratch file
	a.do(t, ask("DEL", prev(result)))
	same(t, "the pod", text(t, a.pod), "")
	a.do(t, ask("DEL", ""))
	a.write(t)
	same(t, "the next address", a.ips(t, ask("ADD", "")), "[10.5.1.3]") // host-local goes round
}

func TestDelegateThatFailsGetsADEL(t *testing.T) {
	a := act{newHost(t, "10.5.1.0/24"), newSpace(t), "1.1.0"}
	a.node.Networks = []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}
	a.write(t)
	f := newFake(t, fails("ADD"))
	keys := `,"delegate":{"type":"fake","keyB":2},"runtimeConfig":{"portMappings":[]}`
	a.refuse(t, a.ask("ADD", keys).with("CNI_PATH", f.dir), 142, "no luck")
	same(t, "the verbs", f.asked(t), "ADD DEL")
	same(t, "what the delegate was given", normal(t, contents(t, filepath.Join(f.dir, "ADD.json"))), normal(t, `{"cniVersion":"1.1.0","name":"net","type":"fake","keyB":2,
		"ipMasq":false,"mtu":1430,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.5.1.0/24","gateway":"10.5.1.1","rangeStart":"10.5.1.2"}]],"routes":[{"dst":"10.5.0.0/16"}]},
		"runtimeConfig":{"portMappings":[]}}`))
	for _, verb := range []string{"STATUS", "GC"} {
		a.do(t, a.ask(verb, keys+`,"cni.dev/valid-attachments":[]`).with("CNI_PATH", f.dir))
	}
	same(t, "the verbs", f.asked(t), "ADD DEL STATUS GC")
}

func TestDelegateKeysThatAreNoPlugin(t *testing.T) {
	a, _ := delegating(t, "")
	for _, bad := range []string{`"type":"../../bin/sh"`, `"type":"/bin/sh"`, `"type":7`, `"type":""`} {
		for _, verb := range []string{"ADD", "DEL"} {
			a.refuse(t, a.ask(verb, `,"delegate":{`+bad+`}`).with("CNI_PATH", debian), types.ErrInvalidNetworkConfig, "type")
		}
	}
}
