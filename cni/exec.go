package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// exec calls a verb of another plugin and returns what that prints (CNI spec, section 4). The library's package invoke does
// the same, and with it comes a tracing library and an HTTP server: 2 MB of program for every start of every pod.
func (c conf) exec(verb, plugin string, text []byte) ([]byte, error) {
	program, err := c.find(plugin)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb) // the last of a name counts
	if args := strings.Trim(c.request.args, ";"); args != "" {
		cmd.Env = append(cmd.Env, "CNI_ARGS="+args+";IgnoreUnknown=1") // the reference plugins fail on what is not for them
	}
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	answer, err := cmd.Output()
	if err == nil {
		return answer, nil
	}
	var e types.Error
	if json.Unmarshal(answer, &e) != nil || e.Msg == "" {
		return nil, fmt.Errorf("%s: %w: %s", program, err, answer)
	}
	return nil, &e
}

// execADD is exec for an ADD; it returns the result in its newest form.
func (c conf) execADD(plugin string, text []byte) (*current.Result, error) {
	answer, err := c.exec("ADD", plugin, text)
	if err != nil {
		return nil, err
	}
	var given map[string]any
	if err := json.Unmarshal(answer, &given); err != nil {
		return nil, fmt.Errorf("its result: %w", err)
	}
	version, _ := given["cniVersion"].(string)
	if version == "" { // older ones leave it out: then it is the configuration's
		version, given["cniVersion"] = c.CNIVersion, c.CNIVersion
		if answer, err = json.Marshal(given); err != nil {
			return nil, err
		}
	}
	result, err := create.Create(version, answer)
	if err != nil {
		return nil, fmt.Errorf("its result: %w", err)
	}
	return current.NewResultFromResult(result)
}

// find looks for the plugin where the runtime said that plugins lie, and nowhere else: a name is not a path (CVE-2021-20206).
func (c conf) find(plugin string) (string, error) {
	if plugin == "" || strings.ContainsRune(plugin, filepath.Separator) {
		return "", invalid("type: %q: want the name of a plugin", plugin)
	}
	for _, dir := range filepath.SplitList(c.request.path) {
		program := filepath.Join(dir, plugin)
		if s, err := os.Stat(program); filepath.IsAbs(dir) && err == nil && s.Mode().IsRegular() {
			return program, nil
		}
	}
	return "", fmt.Errorf("no plugin %s in CNI_PATH %s", plugin, c.request.path)
}
