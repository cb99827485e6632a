package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcd"
)

// options is what the command line and the environment say.
type options struct {
	store etcd.Options

	node      string
	ifaces    []string
	canReach  string
	publicIP  string
	bridge    string
	vxlanName string
	leaseTTL  time.Duration
	massGrace time.Duration
	listen    string
	runDir    string
	stateDir  string
	verbosity int

	cniConfDir string
	cniBinDir  string

	json, force                 bool
	onlyReservation, onlyLease  bool
	allowResubnet, allowOldEtcd bool

	guard       string
	masquerade  bool
	untracked   bool
	masqExclude []string
	exclude     []netip.Prefix // masqExclude, none overlapping another
	antispoof   bool

	choice backend.Choice // of the uplink, from the flags above
}

const noBridge = "none"

// defaultRunDir is where the plugin looks unless it is told otherwise.
const defaultRunDir = "/run/overlayd"

// Titles of the groups of flags.
const (
	groupStore   = "Where leases are kept"
	groupHost    = "This host"
	groupDevices = "What it makes"
	groupLog     = "Log and health"
	groupOwn     = "This command"
)

// groups declares the flags, in the order in which help shows them.
func (o *options) groups() []*pflag.FlagSet {
	group := func(title string) *pflag.FlagSet {
		f := pflag.NewFlagSet(title, pflag.ContinueOnError)
		f.SortFlags = false
		return f
	}
	s := &o.store
	store := group(groupStore)
	store.StringSliceVar(&s.Endpoints, "etcd-endpoints", []string{"http://127.0.0.1:2379"}, "etcd's `URLs`, with commas between them; https for TLS")
	store.StringVar(&s.Prefix, "etcd-prefix", "/overlayd/network", "`path` of all keys; a flannel network's, such as /coreos.com/network, to join that")
	store.StringVar(&s.CAFile, "etcd-cafile", "", "PEM `file` of the authority that signed etcd's certificate (default: the system's)")
	store.StringVar(&s.CertFile, "etcd-certfile", "", "PEM `file` of this host's certificate; read again when it changes")
	store.StringVar(&s.KeyFile, "etcd-keyfile", "", "PEM `file` of the certificate's key")
	store.StringVar(&s.Username, "etcd-username", "", "etcd `user`; a certificate is the better way")
	store.StringVar(&s.PasswordFile, "etcd-password-file", "", "`file` whose first line is the user's password")

	store.BoolVar(&o.allowOldEtcd, "allow-old-etcd", false, "do not complain of etcd servers with known holes in their access control")

	host := group(groupHost)
	host.StringVar(&o.node, "node-name", "", "`name` that identifies this host; its subnet belongs to it (default: the host name)")
	host.StringSliceVar(&o.ifaces, "iface", nil, "uplink: a device's `name`, an address of it, or a regular expression for the whole\n"+
		"name; repeatable, the first that matches (default: the device of the default route)")
	host.StringVar(&o.canReach, "iface-can-reach", "", "uplink: the device through which this `address` is reached")
	host.StringVar(&o.publicIP, "public-ip", "", "`address` to which peers send, if another than the uplink's (NAT)")
	host.DurationVar(&o.leaseTTL, "lease-ttl", 24*time.Hour, "`duration` for which the subnet stays this host's after it was last heard of")
	host.DurationVar(&o.massGrace, "mass-removal-grace", 5*time.Minute, "`duration` for which peers that vanish from etcd are still believed, when it is most\n"+
		"of them at once or the store was wiped")

	host.BoolVar(&o.allowResubnet, "allow-resubnet", false, "when somebody else got this host's subnet (after an outage longer than the lease), take\n"+
		"another even while pods have addresses in it: they lose their network")

	devices := group(groupDevices)
	devices.StringVar(&o.bridge, "bridge", "ovl0", "`name` of the bridge for pods; none if you bring your own (docker --bip, flannel's plugin)")
	devices.StringVar(&o.vxlanName, "vxlan-name", "", "`name` of the VXLAN device (default: overlay.<VNI>)")
	devices.BoolVar(&o.masquerade, "ip-masq", true, "give pods' packets to outside the network this host's address")
	devices.StringSliceVar(&o.masqExclude, "masq-exclude", nil, "`prefixes` outside the network to which pods' packets keep their own addresses")
	devices.BoolVar(&o.untracked, "untracked", false, "do not track connections inside the network: faster, and wrong where an address or a\n"+
		"port of the host stands for pods (kube-proxy, portmap, docker -p) or a firewall goes by connections")
	devices.StringVar(&o.guard, "guard", string(backend.GuardFull), "VXLAN is accepted: full: of each host with a lease, with that host's sources inside;\n"+
		"vtep: of each host with a lease; off: of anybody (`mode`)")
	devices.BoolVar(&o.antispoof, "antispoof", true, "let pods send only with the addresses and the MAC that they were given")
	devices.StringVar(&o.cniConfDir, "cni-conf-dir", "", "`directory` in which to write "+conflistName+" once pods can be attached, such as\n"+
		"/etc/cni/net.d (default: nowhere)")
	devices.StringVar(&o.cniBinDir, "cni-bin-dir", "", "`directory` in which to install the plugin overlay that lies beside overlayd, such as\n"+
		"/opt/cni/bin (default: nowhere)")
	devices.StringVar(&o.runDir, "run-dir", defaultRunDir, "`directory` for node.json, subnet.env, the lock and the socket")
	devices.StringVar(&o.stateDir, "state-dir", "/var/lib/overlayd", "`directory` for what outlives a reboot")

	logs := group(groupLog)
	logs.StringVar(&o.listen, "listen", "", "`address:port` for /healthz, /readyz, /metrics and /status, besides the socket in the run\n"+
		"directory (default: nowhere else)")
	logs.IntVarP(&o.verbosity, "v", "v", 0, "`level`: 0 says what changed and what is wrong, 2 every pass")
	return []*pflag.FlagSet{store, host, devices, logs}
}

// parse reads the command line, then for flags not given there the environment, and returns the operands.
func parse(groups []*pflag.FlagSet, args []string, env func(string) (string, bool)) ([]string, error) {
	all := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	all.SetOutput(io.Discard)
	for _, g := range groups {
		all.AddFlagSet(g)
	}
	if err := all.Parse(args); err != nil {
		return nil, err
	}
	var err error
	all.VisitAll(func(f *pflag.Flag) {
		if text, ok := env(variable(f)); ok && !f.Changed && err == nil {
			if bad := f.Value.Set(text); bad != nil {
				err = fmt.Errorf("environment variable %s=%s: %w", variable(f), text, bad)
			}
		}
	})
	return all.Args(), err
}

// variable is the flag's name in the environment.
func variable(f *pflag.Flag) string {
	return "OVERLAYD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
}

// check completes the options and refuses what cannot be meant.
func (o *options) check() error {
	if o.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w: give --node-name", err)
		}
		o.node = name
	}
	if err := subnet.CheckNode(o.node); err != nil {
		return fmt.Errorf("--node-name: %w", err)
	}
	if o.leaseTTL < etcd.MinTTL || o.leaseTTL%time.Second != 0 {
		return fmt.Errorf("--lease-ttl %s: want at least %s, in whole seconds", o.leaseTTL, etcd.MinTTL)
	}
	if o.bridge == noBridge {
		o.bridge = ""
	} else if err := checkDevice("--bridge", o.bridge); err != nil {
		return err
	}
	if o.vxlanName != "" {
		if err := checkDevice("--vxlan-name", o.vxlanName); err != nil {
			return err
		}
	}
	if o.bridge != "" && o.bridge == o.vxlanName {
		return fmt.Errorf("--bridge and --vxlan-name are both %s: give each a name of its own", o.bridge)
	}
	for _, dir := range []struct{ flag, path string }{{"--run-dir", o.runDir}, {"--state-dir", o.stateDir}, {"--cni-conf-dir", o.cniConfDir}, {"--cni-bin-dir", o.cniBinDir}} {
		if strings.HasPrefix(dir.flag, "--cni") && dir.path == "" {
			continue
		}
		if !filepath.IsAbs(dir.path) {
			return fmt.Errorf("%s %s: want an absolute path", dir.flag, dir.path)
		}
	}
	if o.listen != "" {
		if _, port, err := net.SplitHostPort(o.listen); err != nil || port == "" {
			return fmt.Errorf("--listen %q: want an address and a port, such as 127.0.0.1:9142", o.listen)
		}
	}
	var verbosity flag.FlagSet
	klog.InitFlags(&verbosity)
	if err := verbosity.Set("v", strconv.Itoa(o.verbosity)); err != nil {
		return err
	}
	if err := o.checkFilter(); err != nil {
		return err
	}
	return o.checkUplink()
}

func (o *options) checkFilter() error {
	switch backend.Guard(o.guard) {
	case backend.GuardFull, backend.GuardVTEP, backend.GuardOff:
	default:
		return fmt.Errorf("--guard %q: want full, vtep or off", o.guard)
	}
	var all []netip.Prefix
	for _, text := range o.masqExclude {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return fmt.Errorf("--masq-exclude %q: want a prefix without host bits, such as 192.0.2.0/24", text)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) }) // the wider first
	for _, p := range all {
		if !slices.ContainsFunc(o.exclude, p.Overlaps) {
			o.exclude = append(o.exclude, p)
		}
	}
	return nil
}

func (o *options) checkUplink() (err error) {
	o.choice.Ifaces = o.ifaces
	for _, i := range o.ifaces {
		if _, err := regexp.Compile(i); err != nil {
			return fmt.Errorf("--iface %s: neither a name nor a regular expression: %w", i, err)
		}
	}
	if o.canReach != "" {
		if o.choice.CanReach, err = netip.ParseAddr(o.canReach); err != nil {
			return fmt.Errorf("--iface-can-reach %q: want an IP address", o.canReach)
		}
	}
	if o.publicIP != "" {
		ip, err := netip.ParseAddr(o.publicIP)
		if err != nil || !ip.IsGlobalUnicast() || ip.Zone() != "" {
			return fmt.Errorf("--public-ip %q: want a unicast IP address", o.publicIP)
		}
		o.choice.PublicIP = ip.Unmap()
	}
	return nil
}

// checkDevice says whether Linux takes the name (net/core/dev.c, dev_valid_name).
func checkDevice(flag, name string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) } // a % is for the kernel to number
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%s %q: want a device name of 1 to %d characters without slashes, colons, percent signs and spaces", flag, name, unix.IFNAMSIZ-1)
	}
	return nil
}

// kernel returns the kernel's options for a network with the given VNI; 0 when it is not known.
func (o *options) kernel(vni uint32) kernel.Options {
	k := kernel.Options{
		Node: o.node, VXLAN: o.vxlanName, Bridge: o.bridge, Choice: o.choice,
		Guard: backend.Guard(o.guard), Masquerade: o.masquerade, Exclude: o.exclude, Untracked: o.untracked, AntiSpoof: o.antispoof,
	}
	if k.VXLAN == "" && vni != 0 {
		k.VXLAN = kernel.DefaultVXLANName(vni)
	}
	return k
}

const intro = `overlayd - one flat network for the containers of many hosts, over VXLAN

Usage:
  overlayd [flags]                              run the daemon on this host
  overlayd COMMAND [flags]

Commands:
`

const outro = `
Every flag is also an environment variable: --etcd-prefix is OVERLAYD_ETCD_PREFIX. A flag wins.

Example:
  echo '{"Network": "10.5.0.0/16"}' | overlayd config set - --etcd-endpoints http://192.0.2.1:2379
  overlayd --etcd-endpoints http://192.0.2.1:2379 --iface eth0
`

// help prints the manual page of the daemon or of a command.
func help(out io.Writer, c command, groups []*pflag.FlagSet) {
	if c.name == "" {
		fmt.Fprint(out, intro)
		for _, c := range commands() {
			fmt.Fprintf(out, "  %-43s %s\n", strings.TrimSpace(c.name+" "+c.operands), c.summary)
		}
	} else {
		fmt.Fprintf(out, "overlayd %s - %s\n\nUsage:\n  overlayd %s%s[flags]\n", c.name, c.summary, prefixed(c.name), prefixed(c.operands))
	}
	for _, g := range groups {
		if c.reads(g.Name()) {
			fmt.Fprintf(out, "\n%s:\n%s", g.Name(), g.FlagUsages())
		}
	}
	if c.name == "" {
		fmt.Fprint(out, outro)
		return
	}
	fmt.Fprintf(out, "\nIt takes all flags of the daemon (overlayd --help), so that one environment fits both.\n")
}
