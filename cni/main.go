// Command overlay is the CNI plugin: it attaches a pod to this host's part of the overlay and takes it off again. It reads
// the node file that overlayd writes and never speaks to the daemon, so pods start while that restarts. The kernel is its
// only database: the host side of a pod's veth holds the pod's address as its alternative name.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// release is set when a release is built.
var release = "dev"

// versions are those of the CNI spec that are spoken.
func versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Codes of errors that CNI has no name for (spec 1.1, sections "STATUS" and "Error": from 100 on they are ours).
const (
	codeUnserved = 50  // ADD cannot be served
	codeCutOff   = 51  // and pods that are attached may be cut off too
	codeTaken    = 100 // somebody has the address that was asked for
	codeAttached = 101 // the container is attached already
	codeDiffers  = 102 // CHECK found something missing or wrong
)

func main() {
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		printVersion(os.Stdin, os.Stdout)
		return
	}
	if os.Getenv("CNI_PATH") == "" && os.Getenv("CNI_COMMAND") != "GC" {
		_ = os.Setenv("CNI_PATH", "/opt/cni/bin") // the spec wants it for GC only; the library for all
	}
	var input []byte
	if os.Getenv("CNI_COMMAND") != "" { // else a person asks what this is
		var err error
		if input, err = io.ReadAll(os.Stdin); err == nil { // the library reads it again: this is for the version in an error
			err = replay(input)
		}
		if err != nil {
			fail(nil, types.NewError(types.ErrIOFailure, "read standard input: "+err.Error(), ""))
		}
	}
	if e := skel.PluginMainFuncsWithError(
		skel.CNIFuncs{Add: add, Del: del, Check: check, GC: collect, Status: status},
		version.PluginSupports(versions()...),
		"CNI plugin overlay "+release+": attaches containers to the overlayd network",
	); e != nil {
		fail(input, e)
	}
}

// replay makes text the standard input.
func replay(text []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	os.Stdin = r
	go func() {
		_, _ = w.Write(text) // ends with the process if nobody reads
		_ = w.Close()
	}()
	return nil
}

// fail prints the error as the spec wants it, with the version of the configuration, and exits.
func fail(input []byte, e *types.Error) {
	text, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{askedVersion(input), e}, "", "  ")
	if err == nil {
		_, err = fmt.Println(string(text))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

// askedVersion is the version in which the answer is wanted.
func askedVersion(input []byte) string {
	var c struct{ CNIVersion string }
	if json.Unmarshal(input, &c) == nil && slices.Contains(versions(), c.CNIVersion) {
		return c.CNIVersion
	}
	return versions()[len(versions())-1]
}

// printVersion answers VERSION. It looks at nothing but its input.
func printVersion(in io.Reader, out io.Writer) {
	const most = 1 << 20
	input, _ := io.ReadAll(io.LimitReader(in, most))
	enc := json.NewEncoder(out)
	_ = enc.Encode(struct { // nobody is left to be told
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{askedVersion(input), versions()})
}

// add attaches the pod (CNI spec, section "ADD"). An ADD that fails leaves nothing behind.
func add(args *skel.CmdArgs) error {
	pod, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer pod.close()
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	node, err := readNode(c.NodeFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "see: systemctl status overlayd; overlayd status")
	}
	if c.Delegate != nil {
		return c.delegateAdd(node)
	}
	j, err := newJob(c, node, pod, args)
	if err != nil {
		return err
	}
	result, err := j.attach()
	if err != nil {
		return err
	}
	result.DNS = c.DNS
	if result, err = c.joined(result); err != nil {
		return err
	}
	return types.PrintResult(result, c.CNIVersion)
}

// del takes the pod off (CNI spec, section "DEL"). What is already gone is no error: the name of the link says it all, and
// the pod's namespace need not be there.
func del(args *skel.CmdArgs) error {
	if args.Netns != "" {
		if err := notOwn(args.Netns); err != nil {
			return err
		}
	}
	c, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if c.Delegate != nil {
		return c.delegateOther("DEL")
	}
	if err := newAttachment(c.Name, args).detach(); err != nil {
		return err
	}
	return c.ipam("DEL")
}

func badNetns(path, why string) error {
	return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s: %s", path, why), "")
}
