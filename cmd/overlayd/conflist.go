package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"k8s.io/klog/v2"
)

// conflistName is the network configuration list for container runtimes, which take the first of their directory.
const conflistName = "10-overlay.conflist"

const pluginName = "overlay"

// pluginDirs are where distributions and runtimes keep CNI plugins.
func pluginDirs() []string { return []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"} }

// installCNI waits until pods can be attached, then installs what container runtimes need, as far as it was asked for. What
// cannot be written is told and does not end the daemon. Nothing is removed when the daemon stops: pods could not be taken
// off the network then.
func (w *witness) installCNI(ctx context.Context) error {
	o := w.options
	if o.cniBinDir == "" && o.cniConfDir == "" {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.served:
	}
	if o.cniBinDir != "" {
		if err := installPlugin(o.cniBinDir); err != nil {
			klog.Errorf("--cni-bin-dir: %v", err)
		}
	}
	if o.cniConfDir != "" {
		if err := o.writeConflist(ctx); err != nil && ctx.Err() == nil {
			klog.Errorf("--cni-conf-dir: %v", err)
		}
	}
	return nil
}

// installPlugin puts the plugin that lies beside this program into the directory, by rename: the old one may be running.
func installPlugin(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(self), pluginName))
	if err != nil {
		return fmt.Errorf("%w: put the plugin beside overlayd", err)
	}
	const executable = 0o755
	if err := makeDir(dir); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, pluginName), text, executable)
}

// makeDir makes a directory. Under systemd the daemon may write only below directories that are there when it starts.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%w: make the directory %s and start overlayd again", err, dir)
	}
	return nil
}

// replaceFile writes a file if it is not as it should be. The new one is made in the same directory: runtimes that watch it
// do not notice what is renamed from another (containerd 1.6).
func replaceFile(path string, text []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() == mode {
			return err
		}
		return os.Chmod(path, mode)
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer file.Cleanup() //nolint:errcheck // nothing to clean up when all went well
	if _, err := file.Write(text); err != nil {
		return err
	}
	if err := file.CloseAtomicallyReplace(); err != nil {
		return err
	}
	klog.Infof("wrote %s", path)
	return nil
}

// plugin is one object of the list.
type plugin struct {
	Type         string          `json:"type"`
	NodeFile     string          `json:"nodeFile,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	SNAT         bool            `json:"snat,omitempty"`
}

// writeConflist writes the list with those chained plugins that are installed.
func (o *options) writeConflist(ctx context.Context) error {
	if o.bridge == "" {
		return errors.New("with --bridge none there is nothing to attach pods to: write the list yourself")
	}
	own := plugin{Type: pluginName, Capabilities: map[string]bool{"ips": true, "mac": true}}
	if o.runDir != defaultRunDir {
		own.NodeFile = filepath.Join(o.runDir, nodeFileName)
	}
	list := []plugin{own}
	common := []string{"1.1.0", "1.0.0", "0.4.0", "0.3.1"} // of the plugin overlay, the latest first
	for _, p := range []plugin{
		{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, SNAT: true},
		{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}},
	} {
		path, err := findPlugin(p.Type, append([]string{o.cniBinDir}, pluginDirs()...))
		if err != nil {
			klog.Warningf("%s is without the plugin %s: %v", conflistName, p.Type, err)
			continue
		}
		spoken, err := versionsOf(ctx, path)
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err // it says nothing about the plugin
		}
		if err != nil {
			klog.Warningf("%s is without the plugin %s: %v", conflistName, p.Type, err)
			continue
		}
		list = append(list, p)
		common = slices.DeleteFunc(common, func(v string) bool { return !slices.Contains(spoken, v) })
	}
	text, err := conflist(common, list)
	if err != nil {
		return err
	}
	if err := makeDir(o.cniConfDir); err != nil {
		return err
	}
	const readable = 0o644
	return replaceFile(filepath.Join(o.cniConfDir, conflistName), text, readable)
}

// conflist is the list's text. Old runtimes go by cniVersion alone and know no 1.1.0; newer ones choose of cniVersions, without
// asking the plugins.
func conflist(common []string, plugins []plugin) ([]byte, error) {
	plain := slices.DeleteFunc(slices.Clone(common), func(v string) bool { return v == "1.1.0" })
	if len(plain) == 0 {
		return nil, errors.New("the installed CNI plugins have no version of the CNI spec in common: install others")
	}
	slices.Reverse(common)
	text, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{plain[0], common, "overlay", plugins}, "", "  ")
	return append(text, '\n'), err
}

func findPlugin(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); dir != "" && err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("it is in none of %q", dirs)
}

// versionsOf asks a plugin which versions of the CNI spec it speaks (spec, section "VERSION").
func versionsOf(ctx context.Context, path string) ([]string, error) {
	const patience = 20 * time.Second // it takes milliseconds
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = bytes.NewReader([]byte(`{"cniVersion":"1.0.0"}`))
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, errors.Join(ctx.Err(), err))
	}
	var answer struct{ SupportedVersions []string }
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	return answer.SupportedVersions, nil
}
