package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestVERSIONNeedsNeitherNodeFileNorNetwork(t *testing.T) {
	lab.Need(t)
	for name, env := range map[string][]string{
		"alone":          {"CNI_COMMAND=VERSION"},
		"as podman asks": {"CNI_COMMAND=VERSION", "CNI_IFNAME=dummy", "CNI_NETNS=dummy", "CNI_PATH=dummy"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
			cmd.Env, cmd.Dir = env, "/proc"
			out, err := cmd.Output()
			must(t, err)
			var got struct {
				CNIVersion        string
				SupportedVersions []string
			}
			must(t, json.Unmarshal(out, &got))
			if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; !slices.Equal(got.SupportedVersions, want) || got.CNIVersion == "" {
				t.Errorf("VERSION says\n%s\nwant a cniVersion and supportedVersions %q", out, want)
			}
		})
	}
}

func TestWithoutACommandItTellsWhatItIs(t *testing.T) {
	lab.Need(t)
	cmd := exec.Command(filepath.Join(lab.Binaries(), "overlay"))
	cmd.Env = []string{}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	must(t, err)
	if len(out) > 0 || !strings.Contains(complaint.String(), "CNI plugin overlay") {
		t.Errorf("standard output %q, standard error %q: want nothing, and what it is", out, complaint.String())
	}
}

func TestBadRequestsAreRefusedWithTheCodeOfTheSpec(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	before := text(t, h.Netns)
	longest := strings.Repeat("c", maxAlias-len("net//eth0"))
	for name, test := range map[string]struct {
		command string
		env     map[string]string
		conf    string
		code    uint
		says    string
	}{
		"command unknown":         {"FROB", nil, "", types.ErrInvalidEnvironmentVariables, "FROB"},
		"command in lower case":   {"add", nil, "", types.ErrInvalidEnvironmentVariables, "add"},
		"ADD without container":   {"ADD", map[string]string{"CNI_CONTAINERID": ""}, "", types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID"},
		"ADD without netns":       {"ADD", map[string]string{"CNI_NETNS": ""}, "", types.ErrInvalidEnvironmentVariables, "CNI_NETNS"},
		"ADD without interface":   {"ADD", map[string]string{"CNI_IFNAME": ""}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"DEL without container":   {"DEL", map[string]string{"CNI_CONTAINERID": ""}, "", types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID"},
		"DEL without interface":   {"DEL", map[string]string{"CNI_IFNAME": ""}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"container climbs":        {"ADD", map[string]string{"CNI_CONTAINERID": "../../etc"}, "", types.ErrInvalidEnvironmentVariables, "../../etc"},
		"container with slash":    {"DEL", map[string]string{"CNI_CONTAINERID": "a/b"}, "", types.ErrInvalidEnvironmentVariables, "a/b"},
		"container begins badly":  {"ADD", map[string]string{"CNI_CONTAINERID": "-a"}, "", types.ErrInvalidEnvironmentVariables, "-a"},
		"container too long":      {"ADD", map[string]string{"CNI_CONTAINERID": longest + "c"}, "", types.ErrInvalidNetworkConfig, "256 bytes"},
		"interface too long":      {"ADD", map[string]string{"CNI_IFNAME": "sixteen-letters-"}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"interface with slash":    {"ADD", map[string]string{"CNI_IFNAME": "a/b"}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"interface with colon":    {"ADD", map[string]string{"CNI_IFNAME": "a:b"}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"interface with space":    {"ADD", map[string]string{"CNI_IFNAME": "a b"}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"interface is the parent": {"ADD", map[string]string{"CNI_IFNAME": ".."}, "", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		"conf no JSON":            {"ADD", nil, "{", types.ErrDecodingFailure, ""},
		"conf without name":       {"ADD", nil, `{"cniVersion":"1.0.0","type":"overlay"}`, types.ErrInvalidNetworkConfig, "name"},
		"conf with a bad name":    {"ADD", nil, h.conf("1.0.0", "a/b", ""), types.ErrInvalidNetworkConfig, "name"},
		"version too old":         {"ADD", nil, h.conf("0.2.0", "net", ""), types.ErrIncompatibleCNIVersion, ""},
		"version too new":         {"ADD", nil, h.conf("2.0.0", "net", ""), types.ErrIncompatibleCNIVersion, ""},
		"version missing":         {"ADD", nil, `{"name":"net","type":"overlay"}`, types.ErrIncompatibleCNIVersion, ""},
		"node file relative":      {"ADD", nil, `{"cniVersion":"1.0.0","name":"net","nodeFile":"node.json"}`, types.ErrInvalidNetworkConfig, "nodeFile: node.json"},
		"node file no text":       {"ADD", nil, `{"cniVersion":"1.0.0","name":"net","nodeFile":7}`, types.ErrDecodingFailure, "nodeFile"},
		"prevResult no result":    {"ADD", nil, h.conf("1.0.0", "net", `,"prevResult":{"cniVersion":"9.9.9","interfaces":[]}`), types.ErrInvalidNetworkConfig, "prevResult"},
		"prevResult garbage":      {"ADD", nil, h.conf("1.0.0", "net", `,"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"x"}]}`), types.ErrInvalidNetworkConfig, "prevResult"},
		"mtu too small":           {"ADD", nil, h.conf("1.0.0", "net", `,"mtu":67`), types.ErrInvalidNetworkConfig, "67"},
		"mtu too large":           {"ADD", nil, h.conf("1.0.0", "net", `,"mtu":65536`), types.ErrInvalidNetworkConfig, "65536"},
		"STATUS before 1.1.0":     {"STATUS", nil, h.conf("1.0.0", "net", ""), types.ErrIncompatibleCNIVersion, ""},
		"CHECK before 0.4.0":      {"CHECK", nil, h.conf("0.3.1", "net", ""), types.ErrIncompatibleCNIVersion, ""},
		"GC before 1.1.0":         {"GC", nil, h.conf("1.0.0", "net", ""), types.ErrIncompatibleCNIVersion, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.add("c1", pod)
			c.command, c.env = test.command, test.env
			if test.conf != "" {
				c.conf = test.conf
			}
			h.refuse(t, c, test.code, test.says)
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), "")
		})
	}
	h.do(t, h.add(longest, pod))
	if got := text(t, h.Netns); !strings.Contains(got, longest) {
		t.Errorf("the longest container ID is not in the alias:\n%s", got)
	}
}

func TestOutsideOfTheHostsNamespaceNothingIsTouched(t *testing.T) {
	h, pod := newHost(t, "10.5.1.0/24"), newSpace(t)
	h.do(t, h.add("c1", pod))
	before, podBefore := text(t, h.Netns), text(t, pod)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o644))
	for name, test := range map[string]struct{ command, netns, says string }{
		"ADD to the plugin's own":          {"ADD", h.Path(), "host's own"},
		"DEL of the plugin's own":          {"DEL", h.Path(), "host's own"},
		"ADD to the process's":             {"ADD", "/proc/self/ns/net", "host's own"},
		"DEL of the process's":             {"DEL", "/proc/self/ns/net", "host's own"},
		"ADD to a file":                    {"ADD", file, "not a network namespace"},
		"ADD to a directory":               {"ADD", filepath.Dir(file), "not a network namespace"},
		"ADD to another kind of ns":        {"ADD", "/proc/self/ns/mnt", "not a network namespace"},
		"ADD to what does not exist":       {"ADD", file + "x", "no such file"},
		"ADD to a process that is no more": {"ADD", "/proc/4194304/ns/net", "no such file"},
	} {
		for _, container := range []string{"c1", "c2"} { // one that is attached, one that is not
			t.Run(name+" "+container, func(t *testing.T) {
				c := h.add(container, pod)
				c.command, c.netns = test.command, test.netns
				h.refuse(t, c, types.ErrInvalidNetNS, test.netns, test.says)
				same(t, "the host", text(t, h.Netns), before)
				same(t, "the pod", text(t, pod), podBefore)
			})
		}
	}
}
