package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/overlayd/overlayd/e2e/lab"
)

// debian is where Debian's containernetworking-plugins has its plugins.
const debian = "/usr/lib/cni"

// needed is where a program of another package lies. Without it the test is skipped at a desk and fails in CI.
func needed(t testing.TB, name string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	switch {
	case err == nil:
		return program
	case os.Getenv("CI") != "":
		t.Fatalf("%v: see e2e/tools.sh", err)
	}
	t.Skipf("%v: see e2e/tools.sh", err)
	return ""
}

// theirs is debian once it holds the plugins.
func theirs(t testing.TB, plugins ...string) string {
	t.Helper()
	for _, p := range plugins {
		needed(t, filepath.Join(debian, p))
	}
	return debian
}

// fake is a plugin that writes down what it is asked and answers with what it is told.
type fake struct{ dir string }

// newFake makes the plugin; script is what it does, in sh, with its input in $dir/$CNI_COMMAND.json.
func newFake(t *testing.T, script string) fake {
	t.Helper()
	f := fake{t.TempDir()}
	must(t, os.WriteFile(filepath.Join(f.dir, "fake"), fmt.Appendf(nil,
		"#!/bin/sh\ndir=%s\necho $CNI_COMMAND >> $dir/verbs\nenv > $dir/$CNI_COMMAND.env\ncat > $dir/$CNI_COMMAND.json\n%s\n", f.dir, script), 0o755))
	return f
}

// asked are the verbs that the plugin was called with.
func (f fake) asked(t *testing.T) string {
	t.Helper()
	return strings.Join(strings.Fields(contents(t, filepath.Join(f.dir, "verbs"))), " ")
}

// contents is a file's text; of one that does not exist, nothing.
func contents(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// gives is a fake that hands out one address.
func gives(address string) string {
	return `[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"` + address + `"}]}'`
}

// fails is a fake that fails at the given verb, and hands out an address.
func fails(verb string) string {
	return `[ $CNI_COMMAND != ` + verb + ` ] || { echo '{"cniVersion":"1.0.0","code":142,"msg":"no luck"}'; exit 1; }` + "\n" + gives("10.5.1.77/24")
}

// parsed reads a result of any version.
func parsed(t *testing.T, text string) *current.Result {
	t.Helper()
	var v struct{ CNIVersion string }
	must(t, json.Unmarshal([]byte(text), &v))
	r, err := create.Create(v.CNIVersion, []byte(text))
	must(t, err)
	result, err := current.NewResultFromResult(r)
	must(t, err)
	return result
}

// ips are the addresses of an ADD that must succeed.
func (h *host) ips(t *testing.T, c call) string {
	t.Helper()
	return fmt.Sprint(addrs(h.attach(t, c)))
}

// overlay is the program under test.
func overlay() string { return filepath.Join(lab.Binaries(), "overlay") }
