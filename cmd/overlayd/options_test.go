package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// samples are two values of every flag, and how each is shown.
var samples = map[string][2][2]string{
	"etcd-endpoints":     {{"http://192.0.2.1:2379,http://192.0.2.2:2379", "[http://192.0.2.1:2379,http://192.0.2.2:2379]"}, {"https://etcd:1", "[https://etcd:1]"}},
	"etcd-prefix":        {{"/a", "/a"}, {"/b", "/b"}},
	"etcd-cafile":        {{"/ca1", "/ca1"}, {"/ca2", "/ca2"}},
	"etcd-certfile":      {{"/cert1", "/cert1"}, {"/cert2", "/cert2"}},
	"etcd-keyfile":       {{"/key1", "/key1"}, {"/key2", "/key2"}},
	"etcd-username":      {{"u1", "u1"}, {"u2", "u2"}},
	"etcd-password-file": {{"/p1", "/p1"}, {"/p2", "/p2"}},
	"node-name":          {{"h1", "h1"}, {"h2", "h2"}},
	"iface":              {{"eth0,eth1", "[eth0,eth1]"}, {"wlan0", "[wlan0]"}},
	"iface-can-reach":    {{"192.0.2.1", "192.0.2.1"}, {"192.0.2.2", "192.0.2.2"}},
	"public-ip":          {{"192.0.2.1", "192.0.2.1"}, {"192.0.2.2", "192.0.2.2"}},
	"mass-removal-grace": {{"1m", "1m0s"}, {"2m", "2m0s"}},
	"allow-old-etcd":     {{"true", "true"}, {"false", "false"}},
	"allow-resubnet":     {{"true", "true"}, {"false", "false"}},
	"ip-masq":            {{"false", "false"}, {"true", "true"}},
	"untracked":          {{"false", "false"}, {"true", "true"}},
	"masq-exclude":       {{"192.0.2.0/24", "[192.0.2.0/24]"}, {"198.51.100.0/24", "[198.51.100.0/24]"}},
	"guard":              {{"vtep", "vtep"}, {"off", "off"}},
	"antispoof":          {{"false", "false"}, {"true", "true"}},
	"cni-conf-dir":       {{"/c1", "/c1"}, {"/c2", "/c2"}},
	"cni-bin-dir":        {{"/b1", "/b1"}, {"/b2", "/b2"}},
	"listen":             {{"127.0.0.1:9142", "127.0.0.1:9142"}, {":1", ":1"}},
	"lease-ttl":          {{"90m", "1h30m0s"}, {"60s", "1m0s"}},
	"bridge":             {{"br1", "br1"}, {"br2", "br2"}},
	"vxlan-name":         {{"vx1", "vx1"}, {"vx2", "vx2"}},
	"run-dir":            {{"/run/a", "/run/a"}, {"/run/b", "/run/b"}},
	"state-dir":          {{"/var/a", "/var/a"}, {"/var/b", "/var/b"}},
	"v":                  {{"2", "2"}, {"4", "4"}},
	"json":               {{"true", "true"}, {"false", "false"}},
	"force":              {{"true", "true"}, {"false", "false"}},
}

// allGroups are the flags of the daemon and of all commands.
func allGroups() []*pflag.FlagSet {
	var o options
	own := pflag.NewFlagSet("commands'", pflag.ContinueOnError)
	jsonFlag(own, &o)
	forceFlag(own, &o)
	return append(o.groups(), own)
}

// values are what the flags hold after args and the environment.
func values(t *testing.T, args []string, env map[string]string) map[string]string {
	t.Helper()
	groups := allGroups()
	if _, err := parse(groups, args, func(name string) (string, bool) { v, ok := env[name]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, g := range groups {
		g.VisitAll(func(f *pflag.Flag) { got[f.Name] = f.Value.String() })
	}
	return got
}

func TestEveryFlagIsAnEnvironmentVariableAndWinsOverIt(t *testing.T) {
	defaults := values(t, nil, nil)
	if len(defaults) != len(samples) {
		t.Errorf("%d flags, %d samples: want one for each: %v", len(defaults), len(samples), defaults)
	}
	for name, sample := range samples {
		t.Run(name, func(t *testing.T) {
			variable := "OVERLAYD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
			env, arg := map[string]string{variable: sample[0][0]}, "--"+name+"="+sample[1][0]
			for what, test := range map[string]struct {
				args []string
				env  map[string]string
				want string
			}{
				"the variable": {nil, env, sample[0][1]},
				"the flag":     {[]string{arg}, nil, sample[1][1]},
				"both":         {[]string{arg}, env, sample[1][1]},
			} {
				got := values(t, test.args, test.env)
				if got[name] != test.want {
					t.Errorf("%s: --%s is %s, want %s", what, name, got[name], test.want)
				}
				for other, v := range got {
					if other != name && v != defaults[other] {
						t.Errorf("%s: --%s is %s, want it left at %s", what, other, v, defaults[other])
					}
				}
			}
		})
	}
}

func TestAFlagGivenTwiceIsAListOfBoth(t *testing.T) {
	got := values(t, []string{"--iface", "eth0", "--iface", "eth1"}, map[string]string{"OVERLAYD_IFACE": "wlan0"})
	if got["iface"] != "[eth0,eth1]" {
		t.Errorf("--iface is %s, want [eth0,eth1]", got["iface"])
	}
}

func TestWhatCannotBeMeantIsRefused(t *testing.T) {
	const device = "want a device name of 1 to 15 characters"
	for name, test := range map[string]struct {
		args string
		says []string
	}{
		"unknown flag":             {"--frob", []string{"--frob", "see overlayd --help"}},
		"unknown flag of command":  {"leases --frob", []string{"--frob", "see overlayd leases --help"}},
		"flag of another command":  {"leases --force", []string{"--force", "see overlayd leases --help"}},
		"unknown command":          {"frob", []string{`"frob"`, "see overlayd --help"}},
		"operand of the daemon":    {"--v=0 extra", []string{`"extra"`, "see overlayd --help"}},
		"operand of a command":     {"version now", []string{`"now"`, "see overlayd version --help"}},
		"one operand more":         {"config set FILE more", []string{`"more"`, "see overlayd config --help"}},
		"value missing":            {"--iface", []string{"--iface", "see overlayd --help"}},
		"no port to listen at":     {"--listen 127.0.0.1", []string{`--listen "127.0.0.1"`, "127.0.0.1:9142"}},
		"duration no duration":     {"--lease-ttl soon", []string{`"soon"`, "--lease-ttl"}},
		"duration too short":       {"--lease-ttl 1s", []string{"--lease-ttl 1s", "want at least 5s"}},
		"duration negative":        {"--lease-ttl -1h", []string{"--lease-ttl -1h0m0s", "want at least 5s"}},
		"level no number":          {"--v loud", []string{`"loud"`, "-v"}},
		"node name with slash":     {"--node-name a/b", []string{"--node-name", `"a/b"`, "want letters"}},
		"node name begins badly":   {"--node-name=-a", []string{"--node-name", `"-a"`, "beginning with a letter"}},
		"bridge too long":          {"--bridge sixteen-letters-", []string{"--bridge", `"sixteen-letters-"`, device}},
		"bridge empty":             {"--bridge=", []string{"--bridge", `""`, device}},
		"bridge with slash":        {"--bridge a/b", []string{"--bridge", `"a/b"`, device}},
		"bridge is a directory":    {"--bridge ..", []string{"--bridge", `".."`, device}},
		"vxlan name with colon":    {"--vxlan-name a:b", []string{"--vxlan-name", `"a:b"`, device}},
		"run directory relative":   {"--run-dir run", []string{"--run-dir run", "want an absolute path"}},
		"state directory relative": {"--state-dir .", []string{"--state-dir .", "want an absolute path"}},
		"interface no expression":  {"--iface eth(", []string{"--iface eth(", "neither a name nor a regular expression"}},
		"can-reach a name":         {"--iface-can-reach etcd.example", []string{"--iface-can-reach", `"etcd.example"`, "want an IP address"}},
		"public IP a prefix":       {"--public-ip 192.0.2.1/24", []string{"--public-ip", `"192.0.2.1/24"`, "want a unicast IP address"}},
		"public IP multicast":      {"--public-ip 224.0.0.1", []string{"--public-ip", `"224.0.0.1"`, "want a unicast IP address"}},
		"public IP unspecified":    {"--public-ip 0.0.0.0", []string{"--public-ip", `"0.0.0.0"`, "want a unicast IP address"}},
		"endpoint without scheme":  {"config get --etcd-endpoints 192.0.2.1:2379", []string{`"192.0.2.1:2379"`, "want a URL such as http"}},
		"endpoint only a name":     {"leases --etcd-endpoints etcd", []string{`"etcd"`, "want a URL such as http"}},
		"endpoint of another kind": {"plan --etcd-endpoints ftp://etcd:1", []string{`"ftp://etcd:1"`, "want a URL such as http"}},
		"config without operand":   {"config", []string{"want: overlayd config get, or: overlayd config set FILE"}},
		"config unknown":           {"config frob", []string{"config frob", "want: overlayd config get"}},
		"config get of something":  {"config get FILE", []string{"config get FILE", "want: overlayd config get"}},
		"config set of nothing":    {"config set", []string{"config set", "want: overlayd config get"}},
		"config set of no file":    {"config set /nonexistent", []string{"/nonexistent", "no such file"}},
	} {
		t.Run(name, func(t *testing.T) { says(t, strings.Fields(test.args), noEnv, test.says...) })
	}
}

// The kernel takes a name with % for a pattern and makes another device, which would never be found again; whitespace is
// whatever isspace says (net/core/dev.c).
func TestADeviceNameThatTheKernelWouldChangeIsRefused(t *testing.T) {
	for _, name := range []string{"ovl%d", "a\vb", "a\rb", "a\fb"} {
		if err := checkDevice("--bridge", name); err == nil || !strings.Contains(err.Error(), "--bridge") {
			t.Errorf("--bridge %q: %v, want it refused", name, err)
		}
	}
}

// IPv4 inside IPv6 would make the lease one of the wrong family; a zone means nothing to a peer.
func TestThePublicIPIsOneThatPeersCanUse(t *testing.T) {
	for _, test := range []struct{ given, want string }{
		{"192.0.2.7", "192.0.2.7"}, {"2001:db8::7", "2001:db8::7"}, {"::ffff:192.0.2.7", "192.0.2.7"}, {"2001:db8::7%eth0", ""},
	} {
		o := options{publicIP: test.given}
		err := o.checkUplink()
		if test.want == "" && err == nil {
			t.Errorf("--public-ip %s becomes %s, want it refused", test.given, o.choice.PublicIP)
		}
		if test.want != "" && (err != nil || o.choice.PublicIP.String() != test.want) {
			t.Errorf("--public-ip %s becomes %s, %v; want %s", test.given, o.choice.PublicIP, err, test.want)
		}
	}
}

func TestABadEnvironmentVariableIsNamed(t *testing.T) {
	env := func(name string) (string, bool) { return "soon", name == "OVERLAYD_LEASE_TTL" }
	says(t, []string{"version"}, env, "OVERLAYD_LEASE_TTL=soon", "see overlayd version --help")
}

func TestBridgeNoneIsNoBridge(t *testing.T) {
	o := options{}
	_, err := parse(o.groups(), []string{"--bridge", "none"}, noEnv)
	must(t, err)
	must(t, o.check())
	if o.bridge != "" {
		t.Errorf("the bridge is %q, want none", o.bridge)
	}
}

func TestTheNodeIsNamedAfterTheHostUnlessTold(t *testing.T) {
	o := options{}
	_, err := parse(o.groups(), nil, noEnv)
	must(t, err)
	must(t, o.check())
	name, err := os.Hostname()
	must(t, err)
	if o.node != name {
		t.Errorf("the node is %q, want the host name %q", o.node, name)
	}
}

func TestHelp(t *testing.T) {
	all := map[string][]string{"daemon": {"--help"}}
	for _, c := range commands() {
		all[c.name] = []string{c.name, "--help"}
	}
	for name, args := range all {
		t.Run(name, func(t *testing.T) { golden(t, filepath.Join("help-"+name+".txt"), prints(t, args...)) })
	}
}

func TestHelpNamesEveryFlagOfItsCommand(t *testing.T) {
	text := prints(t, "--help")
	var o options
	for _, g := range o.groups() {
		g.VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(text, "--"+f.Name+" ") || f.Usage == "" {
				t.Errorf("help does not explain --%s:\n%s", f.Name, text)
			}
		})
	}
}

func TestVersionNamesTheReleaseAndThePlatform(t *testing.T) {
	if got := prints(t, "version"); !strings.HasPrefix(got, "overlayd "+release+" (go") || !strings.HasSuffix(got, ")\n") || !strings.Contains(got, "linux/") {
		t.Errorf("version prints %q, want overlayd %s (go..., linux/...)", got, release)
	}
}
