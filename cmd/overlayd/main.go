// Command overlayd gives every container on every host an address of one flat network, over VXLAN. Without a subcommand
// it is the daemon; with one it looks at what the daemon does or changes the network.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// release is set when a release is built.
var release = "dev"

// command is one subcommand.
type command struct {
	name, operands, summary string
	most                    int      // operands
	shows                   []string // groups of flags that it reads; nil: all
	extra                   func(*pflag.FlagSet, *options)
	run                     func(ctx context.Context, o *options, operands []string, out io.Writer) error
}

func commands() []command {
	return []command{
		{name: "config", shows: []string{groupStore}, operands: "get | set FILE", summary: "show the network's configuration, or set it from a file (- is standard input)", most: 2, extra: forceConfigFlag, run: runConfig},
		{name: "leases", shows: []string{groupStore}, operands: "[reserve NODE SUBNET | release NODE]", summary: "list who has which subnet, keep a subnet for a node, or give up a node's", most: 3, extra: leasesFlags, run: runLeases},
		{name: "plan", shows: []string{groupStore, groupHost, groupDevices}, summary: "print what this host's kernel should hold", run: runPlan},
		{name: "status", shows: []string{groupDevices}, summary: "ask the running daemon how it is; exit code 0 only if it is ready", extra: jsonFlag, run: runStatus},
		{name: "pods", shows: []string{groupDevices}, summary: "list the pods attached to this host: address, host link, container", extra: jsonFlag, run: runPods},
		{name: "uninstall", shows: []string{groupStore, groupHost, groupDevices}, summary: "remove all that is overlayd's from this host and release its lease", extra: forceFlag, run: runUninstall},
		{name: "version", summary: "print the version", run: runVersion},
	}
}

// reads says whether flags of the group mean anything to the command.
func (c command) reads(group string) bool {
	return c.name == "" || group == groupOwn || slices.Contains(c.shows, group)
}

func jsonFlag(f *pflag.FlagSet, o *options) {
	f.BoolVar(&o.json, "json", false, "print JSON for programs")
}

func forceConfigFlag(f *pflag.FlagSet, o *options) {
	f.BoolVar(&o.force, "force", false, "set it even if hosts that are in the network cannot stay in it")
}

func forceFlag(f *pflag.FlagSet, o *options) {
	f.BoolVar(&o.force, "force", false, "even while the daemon runs or pods are attached: they lose their network")
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout)
	stop()
	klog.Flush()
	switch {
	case err == nil:
	case errors.Is(err, errNotReady):
		os.Exit(1) // it has been said
	default:
		fmt.Fprintln(os.Stderr, "overlayd:", err)
		os.Exit(1)
	}
}

// run executes one command line.
func run(ctx context.Context, args []string, env func(string) (string, bool), out io.Writer) error {
	c := command{run: runDaemon}
	switch {
	case len(args) > 0 && args[0] == "help":
		args = []string{"--help"}
	case len(args) == 1 && args[0] == "--version":
		args = []string{"version"}
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		i := slices.IndexFunc(commands(), func(c command) bool { return c.name == args[0] })
		if i < 0 {
			return fmt.Errorf("there is no command %q: see overlayd --help", args[0])
		}
		c, args = commands()[i], args[1:]
	}
	var o options
	groups := o.groups()
	if c.extra != nil {
		own := pflag.NewFlagSet(groupOwn, pflag.ContinueOnError)
		c.extra(own, &o)
		groups = append([]*pflag.FlagSet{own}, groups...)
	}
	operands, err := parse(groups, args, env)
	if errors.Is(err, pflag.ErrHelp) {
		help(out, c, groups)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w (see overlayd %s--help)", err, prefixed(c.name))
	}
	if len(operands) > c.most {
		return fmt.Errorf("%q is one word too many: see overlayd %s--help", operands[c.most], prefixed(c.name))
	}
	if err := o.check(); err != nil {
		return err
	}
	return c.run(ctx, &o, operands, out)
}

func prefixed(name string) string {
	if name == "" {
		return ""
	}
	return name + " "
}

func runVersion(_ context.Context, _ *options, _ []string, out io.Writer) error {
	_, err := fmt.Fprintf(out, "overlayd %s (%s, %s/%s)\n", release, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
