package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/e2e/lab"
)

// row is one testable claim about a plugin: a sentence of the CNI spec 1.1, by its section, or a number of the checklist
// that was made of it and of what runtimes really do: V versions, E errors and environment, A ADD, D DEL, C CHECK, S STATUS,
// G GC, R what runtimes send.
type row struct {
	section, claim string
	in             []string // versions of the spec; nil: all
	run            func(t *testing.T, a act)
}

// since is all versions from the given one on.
func since(version string) []string { return versions()[slices.Index(versions(), version):] }

// act is the stage of a row: a host, and a pod that is not attached.
type act struct {
	*host
	pod     *lab.Netns
	version string
}

// ask is a call with a configuration of the act's version.
func (a act) ask(command, more string) call {
	c := a.add("c1", a.pod)
	c.command, c.conf = command, a.conf(a.version, "net", more)
	return c
}

// prev is the result of an ADD as the key that goes with CHECK and DEL.
func prev(result string) string { return `,"prevResult":` + result }

// with is a call with another value of an environment variable; an empty one removes it.
func (c call) with(key, value string) call {
	env := map[string]string{key: value}
	for k, v := range c.env {
		if k != key {
			env[k] = v
		}
	}
	c.env = env
	return c
}

func TestSpec(t *testing.T) {
	lab.Need(t)
	for _, r := range specRows() {
		t.Run(strings.ReplaceAll(r.section+" "+r.claim, "/", "|"), func(t *testing.T) {
			t.Parallel()
			if r.in == nil {
				r.in = versions()
			}
			for _, v := range r.in {
				t.Run(v, func(t *testing.T) { r.run(t, act{newHost(t, "10.5.1.0/24"), newSpace(t), v}) })
			}
		})
	}
}

func specRows() []row {
	return slices.Concat(versionRows(), environmentRows(), errorRows(), safetyRows(), addRows(), resultRows(), argumentRows(), delRows(), checkRows(), statusRows(), collectRows(), delegationRows())
}

// elsewhere are numbers of the checklist that no execution of the plugin can show.
func elsewhere() map[string]string {
	return map[string]string{
		"V1": "what a runtime negotiates", "V2": "what old runtimes do with cniVersions", "V3": "the list that the daemon writes: cmd/overlayd",
		"G3": "files of host-local", "G5": "which runtimes call GC", "S4": "an old plugin behind this one",
	}
}

func TestEveryNumberOfTheChecklistHasARow(t *testing.T) {
	have := map[string]bool{}
	for _, r := range specRows() {
		have[r.section] = true
	}
	for letter, count := range map[string]int{"V": 6, "E": 15, "A": 7, "D": 5, "C": 5, "S": 4, "G": 5, "R": 4} {
		for i := range count {
			id := fmt.Sprint(letter, i+1)
			if reason := elsewhere()[id]; have[id] == (reason != "") {
				t.Errorf("%s has a row: %v; reason for none: %q", id, have[id], reason)
			}
		}
	}
}

// raw executes the program with just these variables and returns what it prints.
func raw(t *testing.T, stdin string, env ...string) (out, complaint string, code int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
	var o, e strings.Builder
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append([]string{}, env...), strings.NewReader(stdin), &o, &e
	_ = cmd.Run() // the code says it
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func versionRows() []row {
	return []row{
		{"2 VERSION", "prints the cniVersion of its input and supportedVersions", nil, func(t *testing.T, a act) {
			out, complaint, code := raw(t, fmt.Sprintf(`{"cniVersion":%q}`, a.version), "CNI_COMMAND=VERSION")
			same(t, "VERSION", normal(t, out), normal(t, fmt.Sprintf(`{"cniVersion":%q,"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`, a.version)))
			if code != 0 || complaint != "" {
				t.Errorf("exit code %d, standard error %q", code, complaint)
			}
		}},
		{"V4", "the result has the version of the configuration", nil, func(t *testing.T, a act) {
			var r struct{ CNIVersion string }
			must(t, json.Unmarshal([]byte(a.do(t, a.ask("ADD", ""))), &r))
			same(t, "cniVersion", r.CNIVersion, a.version)
		}},
		{"V4", "a version that is not spoken is code 1, for every verb, and none is 0.1.0", since("1.1.0"), func(t *testing.T, a act) {
			for _, verb := range []string{"ADD", "DEL", "CHECK", "STATUS", "GC"} {
				for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "1.0.1", "1.2.0", "2.0.0", "x"} {
					c := a.ask(verb, "")
					c.conf = a.conf(v, "net", "")
					a.refuse(t, c, types.ErrIncompatibleCNIVersion, v)
				}
				c := a.ask(verb, "")
				c.conf = strings.Replace(c.conf, `"cniVersion":"1.1.0",`, "", 1)
				a.refuse(t, c, types.ErrIncompatibleCNIVersion, "0.1.0")
			}
		}},
		{"V5", "VERSION needs CNI_COMMAND only, and no input", since("1.1.0"), func(t *testing.T, a act) {
			for _, stdin := range []string{"", "{", "null", `{"cniVersion":"9.9.9"}`, `{"cniVersion":7}`} {
				out, _, code := raw(t, stdin, "CNI_COMMAND=VERSION")
				same(t, "VERSION of "+stdin, normal(t, out), normal(t, `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`))
				if code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
		}},
		{"V6", "VERSION touches neither disk nor network", since("1.1.0"), func(t *testing.T, a act) {
			trace := filepath.Join(t.TempDir(), "trace")
			_, err := a.Output([]string{"CNI_COMMAND=VERSION"}, needed(t, "strace"), "-f", "-o", trace, "-e", "trace=open,openat,socket,connect,stat,newfstatat",
				filepath.Join(lab.Binaries(), "overlay"))
			must(t, err)
			gos := regexp.MustCompile(`"/sys/kernel/mm/|"/proc/self/(cgroup|mountinfo)"|"/sys/fs/cgroup/|resumed`) // how its scheduler starts
			for line := range strings.Lines(contents(t, trace)) {
				if strings.Contains(line, "(") && !gos.MatchString(line) {
					t.Errorf("VERSION calls %s", line)
				}
			}
		}},
	}
}

func environmentRows() []row {
	return []row{
		{"E1", "commands are case-sensitive; an unknown one is code 4", nil, func(t *testing.T, a act) {
			for _, name := range []string{"add", "Del", "CHECK ", "FROB", "version", "UPDATE"} {
				a.refuse(t, a.ask(name, ""), types.ErrInvalidEnvironmentVariables, "CNI_COMMAND", name)
			}
		}},
		{"E1", "without a command it says what it is on stderr, and exits 0", since("1.1.0"), func(t *testing.T, _ act) {
			out, complaint, code := raw(t, "")
			if out != "" || code != 0 || !strings.Contains(complaint, "CNI plugin overlay") || !strings.Contains(complaint, "1.1.0") {
				t.Errorf("exit code %d, %q, %q", code, out, complaint)
			}
		}},
		{"E2", "a missing variable is code 4 and named", since("1.1.0"), func(t *testing.T, a act) {
			for verb, needs := range map[string][]string{
				"ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
				"DEL": {"CNI_CONTAINERID", "CNI_IFNAME"}, "GC": {"CNI_PATH"},
			} {
				all := a.ask(verb, "")
				for _, v := range needs {
					a.refuse(t, a.ask(verb, "").with(v, ""), types.ErrInvalidEnvironmentVariables, v)
					all = all.with(v, "")
				}
				a.refuse(t, all, types.ErrInvalidEnvironmentVariables, needs...)
			}
		}},
		{"E2", "what the spec calls optional may be missing", since("1.1.0"), func(t *testing.T, a act) {
			result := a.do(t, a.ask("ADD", "").with("CNI_PATH", ""))
			a.do(t, a.ask("CHECK", prev(result)).with("CNI_PATH", ""))
			a.do(t, a.ask("DEL", "").with("CNI_PATH", "").with("CNI_NETNS", ""))
			bare := call{command: "STATUS", conf: a.conf("1.1.0", "net", "")}
			a.do(t, bare.with("CNI_PATH", ""))
			a.do(t, call{command: "GC", conf: a.conf("1.1.0", "net", `,"cni.dev/valid-attachments":[]`)})
		}},
		{"2 Parameters", "a container ID begins with a letter or digit, then also _ . -", since("1.0.0"), func(t *testing.T, a act) {
			for _, good := range []string{"a", "0", "a..b", "A_b.c-d", "default-t2", strings.Repeat("f", 64)} {
				c := a.ask("DEL", "")
				c.container = good
				a.do(t, c)
			}
			for _, bad := range []string{"-a", ".a", "_a", "a/b", "..", "a b", "a\n", "ä", "a:b"} {
				for _, verb := range []string{"ADD", "DEL", "CHECK"} {
					c := a.ask(verb, "")
					c.container = bad
					a.refuse(t, c, types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID")
				}
			}
		}},
		{"E3", "an interface name is what the kernel takes, a network name like a container ID", since("1.0.0"), func(t *testing.T, a act) {
			for _, bad := range []string{".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-"} {
				c := a.ask("ADD", "")
				c.ifname = bad
				a.refuse(t, c, types.ErrInvalidEnvironmentVariables, "CNI_IFNAME")
			}
			for _, bad := range []string{"", "-net", "a/b", "a b", "../x"} {
				c := a.ask("ADD", "")
				c.conf = a.conf(a.version, bad, "")
				a.refuse(t, c, types.ErrInvalidNetworkConfig, "name")
			}
			c := a.ask("ADD", "")
			c.ifname = "fifteen-letters"
			a.do(t, c)
		}},
		{"E15", "traces are not for this plugin", since("1.1.0"), func(t *testing.T, a act) {
			a.do(t, a.ask("ADD", "").with("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").with("BAGGAGE", "=;,"))
		}},
	}
}
