// Command overlay is the CNI plugin: it attaches a pod to this host's part of the overlay and takes it off again. It reads
// the node file that overlayd writes and never speaks to the daemon, so pods start while that restarts. The kernel is its
// only database: the host side of a pod's veth holds the pod's address as its alternative name.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// release is set when a release is built.
var release = "dev"

// versions are those of the CNI spec that are spoken, the oldest first.
func versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Codes of errors that CNI has no name for (spec 1.1, sections "STATUS" and "Error": from 100 on they are ours).
const (
	codeUnserved = 50  // ADD cannot be served
	codeCutOff   = 51  // and pods that are attached may be cut off too
	codeTaken    = 100 // somebody has the address that was asked for
	codeAttached = 101 // the container is attached already
	codeDiffers  = 102 // CHECK found something missing or wrong
)

func main() { os.Exit(run(os.Getenv, os.Stdin, os.Stdout, os.Stderr)) }

// add attaches the pod (CNI spec, section "ADD"). An ADD that fails leaves nothing behind.
func add(c conf, out io.Writer) error {
	pod, err := openPod(c.request.netns)
	if err != nil {
		return err
	}
	defer pod.close()
	node, err := readNode(c.NodeFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "see: systemctl status overlayd; overlayd status")
	}
	if c.Delegate != nil {
		return c.delegateAdd(node, out)
	}
	var prev *current.Result
	if len(c.RawPrevResult) > 0 {
		if prev, err = c.previous(); err != nil {
			return err
		}
	}
	j, err := newJob(c, node, pod)
	if err != nil {
		return err
	}
	defer j.kernel.close()
	result, err := j.attach()
	if err != nil {
		return err
	}
	if err := printResult(joined(prev, result), c.CNIVersion, out); err != nil {
		return errors.Join(err, j.detach(j.kernel), c.ipam("DEL")) // nobody heard of it: a second ADD must find nothing
	}
	return nil
}

func printResult(result types.Result, version string, out io.Writer) error {
	result, err := result.GetAsVersion(version)
	if err != nil {
		return err
	}
	return result.PrintTo(out)
}

// del takes the pod off (CNI spec, section "DEL"). What is already gone is no error: the name of the link says it all, and
// the pod's namespace need not be there.
func del(c conf, _ io.Writer) error {
	r := c.request
	if r.netns != "" {
		if err := notOwn(r.netns); err != nil {
			return err
		}
	}
	if c.Delegate != nil {
		return c.delegateOther("DEL")
	}
	kernel, err := dial()
	if err != nil {
		return err
	}
	defer kernel.close()
	if err := newAttachment(c.Name, r.container, r.ifname).detach(kernel); err != nil {
		return err
	}
	return c.ipam("DEL")
}

func badNetns(path, why string) error {
	return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s: %s", path, why), "")
}
