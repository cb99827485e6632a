package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// defaultNodeFile is where overlayd writes it unless told otherwise.
const defaultNodeFile = "/run/overlayd/node.json"

// conf is the plugin's object in the network configuration list. Keys it does not know are other's: left alone.
type conf struct {
	types.PluginConf
	NodeFile         string         `json:"nodeFile"`
	Bridge           string         `json:"bridge"`           // empty: the node file's
	MTU              int            `json:"mtu"`              // bytes; 0: the node file's
	IsDefaultGateway *bool          `json:"isDefaultGateway"` // nil: yes; else only the network is reached through the bridge
	HairpinMode      *bool          `json:"hairpinMode"`      // nil: yes
	PortIsolation    bool           `json:"portIsolation"`    // pods of this host do not see each other
	Routes           []*types.Route `json:"routes"`           // further ones
	Delegate         map[string]any `json:"delegate"`         // as flannel's plugin has it: another plugin attaches the pod
	RuntimeConfig    asked          `json:"runtimeConfig"`
	Args             struct {
		CNI asked `json:"cni"`
	} `json:"args"`

	request request // as it was given
}

// asked is what somebody wants of the attachment.
type asked struct {
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// parseConf reads the network configuration of a request.
func parseConf(r request) (conf, error) {
	c := conf{request: r}
	if err := json.Unmarshal(r.input, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if c.NodeFile == "" {
		c.NodeFile = defaultNodeFile
	}
	return c, nil
}

// check says what is wrong with the keys that are ours.
func (c conf) check() error {
	if !filepath.IsAbs(c.NodeFile) {
		return invalid("nodeFile: %s: want an absolute path", c.NodeFile)
	}
	const least, most = 68, 65535 // what the kernel takes for a veth
	if c.MTU != 0 && (c.MTU < least || c.MTU > most) {
		return invalid("mtu: %d: want 0 (the network's) or %d to %d", c.MTU, least, most)
	}
	for _, r := range c.Routes {
		if r == nil || r.Dst.IP == nil {
			return invalid("routes: want each with a dst such as 192.0.2.0/24")
		}
	}
	return nil
}

// is says what an optional switch says; without it, yes.
func is(b *bool) bool { return b == nil || *b }

// mtu is the pod's, in bytes.
func (c conf) mtu(node subnet.NodeFile) int {
	if c.MTU != 0 {
		return c.MTU
	}
	return node.MTU
}

// bridge is the one that the pod is attached to.
func (c conf) bridge(node subnet.NodeFile) (string, error) {
	if c.Bridge != "" {
		return c.Bridge, nil
	}
	if node.Bridge == "" {
		return "", types.NewError(types.ErrTryAgainLater, c.NodeFile+": overlayd runs with --bridge none: there is nothing to attach to",
			`give "bridge" or "delegate" in the network configuration`)
	}
	return node.Bridge, nil
}

// joined puts the result behind what the plugins before this one made: nothing of theirs is lost.
func joined(prev, result *current.Result) *current.Result {
	if prev == nil {
		return result
	}
	offset := len(prev.Interfaces)
	for _, ip := range result.IPs {
		ip.Interface = current.Int(*ip.Interface + offset)
	}
	prev.Interfaces = append(prev.Interfaces, result.Interfaces...)
	prev.IPs = append(prev.IPs, result.IPs...)
	prev.Routes = append(prev.Routes, result.Routes...)
	if !result.DNS.IsEmpty() {
		prev.DNS = result.DNS
	}
	return prev
}

// previous reads the result that the runtime gives along.
func (c conf) previous() (*current.Result, error) {
	p := c.PluginConf
	if err := version.ParsePrevResult(&p); err != nil {
		return nil, invalid("prevResult: %v", err)
	}
	if p.PrevResult == nil {
		return nil, invalid("prevResult is missing: the runtime gives what ADD returned")
	}
	r, err := current.NewResultFromResult(p.PrevResult)
	if err != nil {
		return nil, invalid("prevResult: %v", err)
	}
	return r, nil
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
	return node, nil
}

// gateway returns the bridge's address for the family of ip; nil when the network has none.
func gateway(node subnet.NodeFile, ip net.IP) net.IP {
	for _, g := range node.Gateways {
		if g.Is4() == (ip.To4() != nil) {
			return g.AsSlice()
		}
	}
	return nil
}
