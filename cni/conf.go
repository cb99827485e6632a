package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// defaultNodeFile is where overlayd writes it unless told otherwise.
const defaultNodeFile = "/run/overlayd/node.json"

// conf is the plugin's object in the network configuration list. Keys it does not know are other's: left alone.
type conf struct {
	types.PluginConf
	NodeFile string `json:"nodeFile"`
}

func parseConf(text []byte) (conf, error) {
	var c conf
	if err := json.Unmarshal(text, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if c.NodeFile == "" {
		c.NodeFile = defaultNodeFile
	}
	if !filepath.IsAbs(c.NodeFile) {
		return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("nodeFile: %s: want an absolute path", c.NodeFile), "")
	}
	return c, nil
}

// readNode returns the node file if pods can be attached under it now. The error says what to do.
func readNode(path string) (subnet.NodeFile, error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return subnet.NodeFile{}, fmt.Errorf("%s does not exist: overlayd has no lease yet", path)
	case err != nil:
		return subnet.NodeFile{}, err
	}
	node, err := subnet.ParseNodeFile(text)
	if err != nil {
		return node, fmt.Errorf("%s: %w", path, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return node, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return node, fmt.Errorf("clock: %w", err)
	}
	if err := node.Usable(string(bytes.TrimSpace(boot)), now.Nano()); err != nil {
		return node, fmt.Errorf("%s: %w", path, err)
	}
	if node.Bridge == "" {
		return node, fmt.Errorf("%s: overlayd runs with --bridge none: there is nothing to attach to", path)
	}
	return node, nil
}
