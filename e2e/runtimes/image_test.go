package runtimes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// busybox is the one program of a container's file system: static, under the names of what tests call.
const busybox = "/bin/busybox"

// applets are the names under which [busybox] is found in a container.
var applets = strings.Fields("sh sleep ip ping nc wget httpd cat echo ls kill true")

// rootFS makes a container's file system in a new directory that ends with the test.
func rootFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range strings.Fields("bin dev etc proc run sys tmp var/www") {
		check(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	program, err := os.ReadFile(busybox)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, busybox), program, 0o755)) //nolint:gosec // a program
	for _, name := range applets {
		check(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	check(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\n"), 0o644))
	return dir
}

// image packs a root file system as an archive of the form that "docker save" writes, which runtimes import under the
// given name. It sleeps when it is run without a command.
func image(t *testing.T, root, name string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	check(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		return pack(w, root, path, d)
	}))
	check(t, w.Close())
	config := document(t, map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"sleep", "3600"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	list := document(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	archive := filepath.Join(t.TempDir(), "image.tar")
	out, err := os.Create(archive)
	check(t, err)
	all := tar.NewWriter(out)
	for _, f := range []struct {
		name string
		text []byte
	}{{"config.json", config}, {"layer.tar", layer.Bytes()}, {"manifest.json", list}} {
		check(t, all.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text))}))
		_, err := all.Write(f.text)
		check(t, err)
	}
	check(t, errors.Join(all.Close(), out.Close()))
	return archive
}

// pack adds a file, directory or symbolic link below root.
func pack(w *tar.Writer, root, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	if header.Name, err = filepath.Rel(root, path); err != nil {
		return err
	}
	if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

func document(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	check(t, err)
	return text
}
