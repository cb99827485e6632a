// Command overlay is the CNI plugin: it attaches a pod to this host's part of the overlay and takes it off again. It reads
// the node file that overlayd writes and never speaks to the daemon, so pods start while that restarts. The kernel is its
// only database: the host side of a pod's veth holds the pod's address as its alternative name.
package main

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// release is set when a release is built.
var release = "dev"

func main() {
	skel.PluginMainFuncs(
		skel.CNIFuncs{Add: add, Del: del, Check: unsupported, GC: unsupported, Status: status},
		version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"),
		"CNI plugin overlay "+release+": attaches containers to the overlayd network",
	)
}

// codeUnserved says that ADD cannot be served (CNI spec 1.1, section "STATUS": error 50).
const codeUnserved = 50

// status answers whether an ADD can be served now.
func status(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if _, err := readNode(conf.NodeFile); err != nil {
		return types.NewError(codeUnserved, err.Error(), "")
	}
	return nil
}

func unsupported(*skel.CmdArgs) error {
	return types.NewError(types.ErrUnsupportedField, "this release of the plugin overlay has no such verb", "")
}

// add attaches the pod (CNI spec, section "ADD"). An ADD that fails leaves nothing behind.
func add(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if len(conf.RawPrevResult) > 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult: overlay makes the interface: put it first in the plugins list", "")
	}
	pod, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer pod.close()
	node, err := readNode(conf.NodeFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "see: systemctl status overlayd; overlayd status")
	}
	a := newAttachment(conf.Name, args)
	result, err := a.attach(node, pod)
	if err != nil {
		return err
	}
	result.DNS = conf.DNS
	return types.PrintResult(result, conf.CNIVersion)
}

// del takes the pod off (CNI spec, section "DEL"). What is already gone is no error: the name of the link says it all, and
// the pod's namespace need not be there.
func del(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if args.Netns != "" {
		if err := notOwn(args.Netns); err != nil {
			return err
		}
	}
	return newAttachment(conf.Name, args).detach()
}

func badNetns(path, why string) error {
	return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s: %s", path, why), "")
}
