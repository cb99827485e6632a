package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

// chained makes a plugin that answers VERSION with the given text, or with an error.
func chained(t *testing.T, dir, name, answer string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] || exit 1\ncat <<'E'\n%s\nE\n", answer)
	if answer == "" {
		script = "#!/bin/sh\nexit 1\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755)) //nolint:gosec // a program
}

func versions(all ...string) string {
	return `{"cniVersion":"1.0.0","supportedVersions":["` + strings.Join(all, `","`) + `"]}`
}

// TestTheConflistIsOfWhatIsInstalled: the chained plugins that are there and answer, and versions that all of them speak.
func TestTheConflistIsOfWhatIsInstalled(t *testing.T) {
	const ours = `    {
      "type": "overlay",
      "nodeFile": "RUN/node.json",
      "capabilities": {
        "ips": true,
        "mac": true
      }
    }`
	const portmap = `,
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      },
      "snat": true
    }`
	const bandwidth = `,
    {
      "type": "bandwidth",
      "capabilities": {
        "bandwidth": true
      }
    }`
	list := func(plain, all, chain string) string {
		return "{\n  \"cniVersion\": \"" + plain + "\",\n  \"cniVersions\": [\n    \"" + strings.ReplaceAll(all, " ", "\",\n    \"") +
			"\"\n  ],\n  \"name\": \"overlay\",\n  \"plugins\": [\n" + ours + chain + "\n  ]\n}\n"
	}
	for _, c := range []struct{ claim, portmap, bandwidth, want string }{
		{"both, of now", versions("0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), versions("0.3.1", "0.4.0", "1.0.0", "1.1.0"),
			list("1.0.0", "0.3.1 0.4.0 1.0.0 1.1.0", portmap+bandwidth)},
		{"Debian 12's", versions("0.3.1", "0.4.0", "1.0.0"), versions("0.3.1", "0.4.0", "1.0.0"), list("1.0.0", "0.3.1 0.4.0 1.0.0", portmap+bandwidth)},
		{"of different age", versions("0.3.1", "0.4.0"), versions("0.4.0", "1.0.0"), list("0.4.0", "0.4.0", portmap+bandwidth)},
		{"one does not answer", versions("0.4.0", "1.0.0"), "", list("1.0.0", "0.4.0 1.0.0", portmap)},
		{"one answers nonsense", "hello", versions("1.0.0"), list("1.0.0", "1.0.0", bandwidth)},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			o := &options{bridge: "ovl0", runDir: filepath.Join(dir, "run"), cniBinDir: dir, cniConfDir: filepath.Join(dir, "net.d")}
			chained(t, dir, "portmap", c.portmap)
			chained(t, dir, "bandwidth", c.bandwidth)
			must(t, o.writeConflist(context.Background()))
			path := filepath.Join(o.cniConfDir, conflistName)
			text, err := os.ReadFile(path)
			must(t, err)
			if diff := cmp.Diff(strings.ReplaceAll(c.want, "RUN", o.runDir), string(text)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if _, err := libcni.ConfListFromFile(path); err != nil {
				t.Errorf("libcni: %v", err)
			}
		})
	}
}

func TestNoConflistIsBetterThanABadOne(t *testing.T) {
	dir := t.TempDir()
	chained(t, dir, "portmap", versions("0.1.0"))
	chained(t, dir, "bandwidth", "")
	o := &options{bridge: "ovl0", runDir: defaultRunDir, cniBinDir: dir, cniConfDir: dir}
	if err := o.writeConflist(context.Background()); err == nil || !strings.Contains(err.Error(), "no version of the CNI spec in common") {
		t.Errorf("with plugins too old: %v", err)
	}
	chained(t, dir, "portmap", versions("1.0.0"))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := o.writeConflist(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("while the daemon stops: %v", err)
	}
	o.bridge = ""
	if err := o.writeConflist(context.Background()); err == nil || !strings.Contains(err.Error(), "--bridge none") {
		t.Errorf("without a bridge: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, conflistName)); err == nil {
		t.Error("there is a list all the same")
	}
}

// inode tells one file from another that took its place.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no inode")
	}
	return stat.Ino
}

// TestAFileIsReplacedOnlyWhenItDiffers, by a rename in its own directory: a program that runs keeps its old file.
func TestAFileIsReplacedOnlyWhenItDiffers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	old, err := os.Create(path)
	must(t, err)
	defer old.Close()
	_, err = old.WriteString("old")
	must(t, err)
	first := inode(t, path)
	must(t, replaceFile(path, []byte("old"), 0o600))
	if info, err := os.Stat(path); err != nil || inode(t, path) != first || info.Mode() != 0o600 {
		t.Errorf("the same text is written again, or is not given its mode: %v", info)
	}
	must(t, replaceFile(path, []byte("new"), 0o755))
	if inode(t, path) == first {
		t.Error("it is written in place")
	}
	info, err := os.Stat(path)
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	if string(text) != "new" || info.Mode() != 0o755 {
		t.Errorf("%s, %q", info.Mode(), text)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("%d files are left", len(entries))
	}
	if err := replaceFile("/nonexistent/file", []byte("new"), 0o644); err == nil || !strings.Contains(err.Error(), "/nonexistent/") {
		t.Errorf("in a directory that is not there: %v", err)
	}
}
