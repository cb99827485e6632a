package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
)

func delRows() []row {
	return []row{
		{"2 DEL", "removes CNI_IFNAME from CNI_NETNS and all of it from the host", nil, func(t *testing.T, a act) {
			before := text(t, a.Netns)
			result := a.do(t, a.ask("ADD", ""))
			a.do(t, a.ask("DEL", prev(result)))
			same(t, "the host", text(t, a.Netns), before)
			same(t, "the pod", text(t, a.pod), "")
		}},
		{"2 DEL", "a prevResult that is empty or garbage is no error", nil, func(t *testing.T, a act) {
			for _, p := range []string{`{}`, `null`, `{"cniVersion":"9.9.9"}`, `{"ips":7}`} {
				a.do(t, a.ask("ADD", ""))
				a.do(t, a.ask("DEL", prev(p)))
			}
		}},
		{"D1", "works when everything is gone, any number of times", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			must(t, os.Remove(a.file))
			must(t, a.Do(dropBridge))
			must(t, a.pod.Remove())
			for range 3 {
				a.do(t, a.ask("DEL", ""))
			}
			if got := text(t, a.Netns); strings.Contains(got, "veth") {
				t.Errorf("the host is\n%s", got)
			}
		}},
		{"D2", "an empty CNI_NETNS detaches a pod that still lives", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			c := a.ask("DEL", "")
			c.netns = ""
			a.do(t, c)
			same(t, "the pod", text(t, a.pod), "")
			a.do(t, c)
		}},
		{"D3", "an IPAM plugin's error at DEL is told after the rest is gone", nil, func(t *testing.T, a act) {
			f, before := newFake(t, fails("DEL")), text(t, a.Netns)
			a.do(t, a.ask("ADD", `,"ipam":{"type":"fake"}`).with("CNI_PATH", f.dir))
			must(t, os.Remove(a.file))
			a.refuse(t, a.ask("DEL", `,"ipam":{"type":"fake"}`).with("CNI_PATH", f.dir), 142, "no luck")
			same(t, "the host", text(t, a.Netns), before)
			same(t, "the verbs", f.asked(t), "ADD DEL")
		}},
		{"D4", "no key that DEL does not need stops the chain", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			a.do(t, a.ask("DEL", `,"bridge":"nowhere","runtimeConfig":{"ips":["203.0.113.1"],"mac":"x"},"capabilities":{"x":true}`).with("CNI_ARGS", "x"))
		}},
		{"D5", "an attachment that was never made is no error", nil, func(t *testing.T, a act) {
			a.do(t, a.ask("DEL", ""))
			c := a.ask("DEL", "")
			c.netns = "/proc/4194304/ns/net"
			a.do(t, c)
		}},
	}
}

func checkRows() []row {
	return []row{
		{"2 CHECK", "is not known before 0.4.0", []string{"0.3.1"}, func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			a.refuse(t, a.ask("CHECK", prev(result)), types.ErrIncompatibleCNIVersion)
		}},
		{"C1", "prints nothing when all is well, at once after ADD and again", since("0.4.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			for range 3 {
				a.do(t, a.ask("CHECK", prev(result))) // do wants no output
			}
		}},
		{"C1", "without prevResult it is an error", since("0.4.0"), func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			a.refuse(t, a.ask("CHECK", ""), types.ErrInvalidNetworkConfig, "prevResult")
		}},
		{"C2", "the interface that prevResult lists must be there", since("0.4.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			a.do(t, a.ask("DEL", ""))
			a.refuse(t, a.ask("CHECK", prev(result)), codeDiffers, "is missing")
		}},
		{"C3", "resources of later plugins are none of its business", since("0.4.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			must(t, a.pod.Do(func() error { return plant("ifb0") }))
			more := strings.Replace(result, `"interfaces": [`, `"interfaces": [{"name":"ifb0","mac":"02:00:00:00:00:09"},`, 1)
			shift := strings.Replace(more, `"interface": 2`, `"interface": 3`, 1)
			a.do(t, a.ask("CHECK", prev(shift)))
		}},
		{"C4", "a pod whose host lost its lease is unreachable", since("0.4.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			a.node.Deadline = 1
			a.write(t)
			a.refuse(t, a.ask("CHECK", prev(result)), types.ErrTryAgainLater, "lease")
		}},
		{"C5", "a bridge that was made again with another MAC does not fail the pods", since("0.4.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", ""))
			must(t, a.Do(func() error {
				l, err := netlink.LinkByName(bridgeName)
				if err != nil {
					return err
				}
				return netlink.LinkSetHardwareAddr(l, []byte{0x0a, 0x58, 9, 9, 9, 9})
			}))
			a.do(t, a.ask("CHECK", prev(result)))
		}},
	}
}

func statusRows() []row {
	return []row{
		{"S1", "STATUS and GC are not known before 1.1.0", []string{"0.3.1", "0.4.0", "1.0.0"}, func(t *testing.T, a act) {
			a.refuse(t, a.ask("STATUS", ""), types.ErrIncompatibleCNIVersion)
			a.refuse(t, a.ask("GC", `,"cni.dev/valid-attachments":[]`), types.ErrIncompatibleCNIVersion)
		}},
		{"S1", "silent and 0 when ADD can be served, and ADD comes anyway when not", since("1.1.0"), func(t *testing.T, a act) {
			a.do(t, a.ask("STATUS", ""))
			must(t, os.Remove(a.file))
			a.refuse(t, a.ask("STATUS", ""), codeUnserved)
			a.write(t)
			a.do(t, a.ask("ADD", ""))
			must(t, os.Remove(a.file))
			a.refuse(t, a.ask("STATUS", ""), codeUnserved)
			a.do(t, a.ask("DEL", ""))
		}},
		{"S1", "forwarded to the IPAM plugin, whose error is told", since("1.1.0"), func(t *testing.T, a act) {
			f := newFake(t, fails("STATUS"))
			a.refuse(t, a.ask("STATUS", `,"ipam":{"type":"fake"}`).with("CNI_PATH", f.dir), 142, "no luck")
			same(t, "the verbs", f.asked(t), "STATUS")
		}},
		{"S2", "fails when the addresses are exhausted", since("1.1.0"), func(t *testing.T, a act) {
			h := newHost(t, "10.5.1.0/30")
			c := a.ask("STATUS", "")
			c.conf = h.conf("1.1.0", "net", "")
			h.do(t, c)
			h.do(t, h.add("c1", a.pod))
			h.refuse(t, c, codeUnserved, "no free address")
		}},
		{"S3", "asks no daemon: the file and the links are enough", since("1.1.0"), func(t *testing.T, a act) {
			trace := filepath.Join(t.TempDir(), "trace")
			c := a.ask("STATUS", "")
			conf := filepath.Join(t.TempDir(), "conf")
			must(t, os.WriteFile(conf, []byte(c.conf), 0o600))
			_, err := a.Output([]string{"CNI_COMMAND=STATUS"}, needed(t, "sh"), "-c", fmt.Sprintf("%s -f -o %s -e trace=connect,execve %s < %s", needed(t, "strace"), trace, overlay(), conf))
			must(t, err)
			if got := contents(t, trace); strings.Count(got, "execve(") != 1 || strings.Contains(got, "connect(") {
				t.Errorf("STATUS calls\n%s", got)
			}
		}},
	}
}

func collectRows() []row {
	return []row{
		{"G1", "the list is wanted: absent it is code 7 and nothing is removed, empty it is everything", since("1.1.0"), func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", ""))
			before := text(t, a.Netns)
			for _, more := range []string{"", `,"cni.dev/attachments":[]`, `,"cni.dev/valid-attachments":null`} {
				a.refuse(t, a.ask("GC", more), types.ErrInvalidNetworkConfig, "cni.dev/valid-attachments")
			}
			same(t, "the host", text(t, a.Netns), before)
			a.do(t, a.ask("GC", `,"cni.dev/valid-attachments":[]`))
			same(t, "the pod", text(t, a.pod), "")
		}},
		{"G2", "forwarded to the IPAM plugin with the list, whose error is told after the rest is gone", since("1.1.0"), func(t *testing.T, a act) {
			f := newFake(t, fails("GC"))
			a.do(t, a.ask("ADD", ""))
			a.refuse(t, a.ask("GC", `,"ipam":{"type":"fake"},"cni.dev/valid-attachments":[]`).with("CNI_PATH", f.dir), 142, "no luck")
			same(t, "the pod", text(t, a.pod), "")
			if got := contents(t, filepath.Join(f.dir, "GC.json")); !strings.Contains(got, `"cni.dev/valid-attachments":[]`) {
				t.Errorf("the IPAM plugin got %s", got)
			}
		}},
		{"G4", "after libcni's GC the cached attachments that are not valid are gone, the others stay", since("1.1.0"), libcniGC},
	}
}

func delegationRows() []row {
	const fakeIPAM = `,"ipam":{"type":"fake","keyB":1},"keyA":["some more"]`
	return []row{
		{"4 Delegated plugin protocol", "a delegate gets the whole configuration, the same environment, its verb, and stderr", since("0.4.0"), func(t *testing.T, a act) {
			f := newFake(t, gives("10.5.1.77/24")+"\necho hello >&2")
			c := a.ask("ADD", fakeIPAM).with("CNI_PATH", f.dir).with("FOO", "BAR").with("CNI_ARGS", "A=1")
			result := a.do(t, c)
			for _, verb := range []string{"CHECK", "DEL"} {
				d := a.ask(verb, fakeIPAM+prev(result)).with("CNI_PATH", f.dir).with("FOO", "BAR").with("CNI_ARGS", "A=1")
				a.do(t, d)
			}
			same(t, "the verbs", f.asked(t), "ADD CHECK DEL")
			for _, verb := range []string{"ADD", "CHECK", "DEL"} {
				env, conf := "\n"+contents(t, filepath.Join(f.dir, verb+".env")), contents(t, filepath.Join(f.dir, verb+".json"))
				for _, want := range []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_NETNS=" + a.pod.Path(), "CNI_IFNAME=eth0", "FOO=BAR", "CNI_PATH=" + f.dir} {
					if !strings.Contains(env, "\n"+want+"\n") {
						t.Errorf("%s: the environment lacks %s:%s", verb, want, env)
					}
				}
				if !strings.Contains(env, "CNI_ARGS=A=1;") || !strings.Contains(conf, `"keyA":["some more"]`) || !strings.Contains(conf, `"keyB":1`) {
					t.Errorf("%s: %s under %s", verb, conf, env)
				}
			}
		}},
		{"E13", "delegates are looked for in CNI_PATH, in order, as regular files, and a name is no path", nil, func(t *testing.T, a act) {
			wrong, right := t.TempDir(), newFake(t, gives("10.5.1.77/24"))
			must(t, os.Mkdir(filepath.Join(wrong, "fake"), 0o755))
			path := "/nowhere::" + wrong + ":" + right.dir + ":" + newFake(t, gives("10.5.1.78/24")).dir
			same(t, "the address", a.ips(t, a.ask("ADD", `,"ipam":{"type":"fake"}`).with("CNI_PATH", path)), "[10.5.1.77]")
			a.do(t, a.ask("DEL", `,"ipam":{"type":"fake"}`).with("CNI_PATH", path))
			for _, bad := range []string{"../" + filepath.Base(right.dir) + "/fake", right.dir + "/fake", "x/fake"} {
				a.refuse(t, a.ask("ADD", fmt.Sprintf(`,"ipam":{"type":%q}`, bad)).with("CNI_PATH", right.dir), types.ErrInvalidNetworkConfig, bad)
				a.refuse(t, a.ask("ADD", fmt.Sprintf(`,"delegate":{"type":%q}`, bad)).with("CNI_PATH", right.dir), types.ErrInvalidNetworkConfig, bad)
			}
			a.refuse(t, a.ask("ADD", `,"ipam":{"type":"nobody"}`), types.ErrInternal, "no plugin nobody")
			same(t, "the pod", text(t, a.pod), "")
		}},
		{"4 Delegated plugin execution procedure", "a delegate's error at CHECK is the caller's", since("0.4.0"), func(t *testing.T, a act) {
			f := newFake(t, fails("CHECK"))
			result := a.do(t, a.ask("ADD", fakeIPAM).with("CNI_PATH", f.dir))
			a.refuse(t, a.ask("CHECK", fakeIPAM+prev(result)).with("CNI_PATH", f.dir), 142, "no luck")
		}},
		{"4 Delegated plugin protocol", "a delegate that dies without a word, or says nonsense, is an error and gets a DEL", since("1.0.0"), func(t *testing.T, a act) {
			for _, script := range []string{"exit 7", "kill -9 $$", "echo '{'", "echo '{}'", "echo '[]'", `echo '{"cniVersion":"9.0.0"}'`, "exit 0"} {
				f := newFake(t, "[ $CNI_COMMAND = ADD ] || exit 0\n"+script)
				before := text(t, a.Netns)
				a.refuse(t, a.ask("ADD", fakeIPAM).with("CNI_PATH", f.dir), types.ErrInternal, "fake")
				same(t, "the verbs after "+script, f.asked(t), "ADD DEL")
				same(t, "the host", text(t, a.Netns), before)
			}
		}},
	}
}
