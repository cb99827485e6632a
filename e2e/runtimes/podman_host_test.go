package runtimes

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// podmanHost is a host with podman on it. Its processes see mounts and process numbers of its own, of which nothing is left
// when the first of them has ended; only podman's cgroups are the machine's.
type podmanHost struct {
	*lab.Host
	t     *testing.T
	dir   string
	first int // process
}

// podmanImage is what all containers run.
const podmanImage = "localhost/web:1"

// debianPlugins is where containernetworking-plugins has its plugins.
const debianPlugins = "/usr/lib/cni"

// backPatience is for what conmon and the daemon do after a container's end.
const backPatience = 10 * time.Second

// podmanConf is a containers.conf(5) for a machine without systemd, and with fewer rights than root's: podman's own limits are
// more than a container may have that is itself a test machine. Locks in shared memory would have one name for all hosts.
const podmanConf = `[containers]
cgroups = "enabled"
log_driver = "k8s-file"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = [%q, %q]
network_config_dir = %q
default_network = "overlay"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
`

// podmanRoom makes fresh mount and PID namespaces a machine's on which podman can write nothing that stays: all but what
// is in memory is read-only. Of the lab's /run its files are kept. Then it buries dead processes for ever.
const podmanRoom = `set -e
mount --make-rprivate /
mount -t proc proc /proc
cd /run/lab
for dir in /run /var/lib /var/tmp /dev/shm; do mount -t tmpfs tmpfs $dir; done
mkdir /run/lab
mount --no-canonicalize --bind . /run/lab
mount -o remount,bind,ro /
echo ready
while :; do sleep 3600 & wait; done`

// podmans are hosts on a network with the given configuration, each with podman and two CNI networks, "overlay" and
// "second", in which the given plugins stand behind ours. The test runs beside others.
func podmans(t *testing.T, name, config string, hosts int, behind ...string) []*podmanHost {
	t.Helper()
	t.Parallel()
	need(t, busybox, "podman", "runc", "conmon", "nsenter", "iptables-save", "ip6tables-save", "nft", filepath.Join(debianPlugins, "portmap"))
	if lab.Rootless() {
		t.Skip("podman as root needs cgroups and devices, which a user namespace does not give: run as root")
	}
	archive := podmanArchive(t)
	var all []*podmanHost
	for _, h := range network(t, name, config, hosts) {
		p := &podmanHost{Host: h, t: t, dir: filepath.Join(h.Dir, "podman")}
		p.room()
		p.furnish(behind)
		p.podman("load", "-q", "-i", archive)
		all = append(all, p)
	}
	return all
}

// podmanArchive is an image of a web server that tells who asks.
func podmanArchive(t *testing.T) string {
	t.Helper()
	root := rootFS(t)
	check(t, os.Mkdir(filepath.Join(root, "var/www/cgi-bin"), 0o755))
	script := "#!/bin/sh\necho; echo $REMOTE_ADDR\n"
	check(t, os.WriteFile(filepath.Join(root, "var/www/cgi-bin/who"), []byte(script), 0o755))
	return image(t, root, podmanImage)
}

// room starts the host's first process. It ends with the test, and every other one with it.
func (p *podmanHost) room() {
	p.t.Helper()
	cmd := exec.Command("sh", "-c", podmanRoom)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	out, err := cmd.StdoutPipe()
	check(p.t, err)
	cmd.Stderr = cmd.Stdout
	check(p.t, p.Do(cmd.Start))
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // returns when all of the PID namespace are dead
		if err := lab.RemoveCgroups(p.cgroup()); err != nil {
			p.t.Error("cgroups are left: ", err)
		}
	})
	p.first = cmd.Process.Pid
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		p.t.Fatal("make podman's namespaces: ", line)
	}
}

// cgroup is the parent of all that podman makes, below each hierarchy's root. Nobody else on the machine has its name.
func (p *podmanHost) cgroup() string { return lab.Cgroup(p.Name) }

// furnish writes podman's configuration and that of the two networks.
func (p *podmanHost) furnish(behind []string) {
	p.t.Helper()
	nets := filepath.Join(p.dir, "net.d")
	check(p.t, os.MkdirAll(nets, 0o755))
	conf := fmt.Sprintf(podmanConf, lab.Binaries(), debianPlugins, nets)
	check(p.t, os.WriteFile(filepath.Join(p.dir, "containers.conf"), []byte(conf), 0o644))
	p.conflist("overlay", behind...)
	p.conflist("second", behind...)
}

// conflist writes the configuration of a CNI network with the given plugins behind ours.
func (p *podmanHost) conflist(name string, behind ...string) {
	p.t.Helper()
	ours := fmt.Sprintf(`{"type":"overlay","nodeFile":%q,"capabilities":{"ips":true,"mac":true}}`, filepath.Join(p.Dir, "run/node.json"))
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, strings.Join(append([]string{ours}, behind...), ","))
	check(p.t, os.WriteFile(filepath.Join(p.dir, "net.d", name+".conflist"), []byte(text), 0o644))
}

// in is the host for a subtest.
func (p *podmanHost) in(t *testing.T) *podmanHost {
	sub := *p
	sub.t = t
	return &sub
}

// try runs a program among the host's processes and returns what it prints, without the last line's end.
func (p *podmanHost) try(name string, args ...string) (string, error) {
	env := []string{"CONTAINERS_CONF=" + filepath.Join(p.dir, "containers.conf")}
	text, err := p.Output(env, "nsenter", append([]string{"--target", fmt.Sprint(p.first), "--mount", "--pid", name}, args...)...)
	return strings.TrimRight(text, "\n"), err
}

// tryPodman runs podman. Its files are where they always are: the host has its own.
func (p *podmanHost) tryPodman(verb string, args ...string) (string, error) {
	return p.try("podman", append([]string{"--storage-driver", "vfs", verb}, args...)...)
}

// podman runs podman, which must succeed.
func (p *podmanHost) podman(verb string, args ...string) string {
	p.t.Helper()
	text, err := p.tryPodman(verb, args...)
	if err != nil {
		p.t.Fatalf("podman %s: %v", verb, err)
	}
	return text
}

// web is what makes a container of the given name that serves on port 80.
func (p *podmanHost) web(name string, flags ...string) []string {
	return slices.Concat([]string{"-d", "--name", name, "--cgroup-parent", p.cgroup(), "--cap-add", "NET_RAW"}, flags,
		[]string{podmanImage, "httpd", "-f", "-p", "80", "-h", "/var/www"})
}

// run starts a container and returns its ID.
func (p *podmanHost) run(name string, flags ...string) string {
	p.t.Helper()
	return p.podman("run", p.web(name, flags...)...)
}

// remove removes a container as people do.
func (p *podmanHost) remove(names ...string) {
	p.t.Helper()
	p.podman("rm", append([]string{"-f", "-t", "0"}, names...)...)
}

// addrs are the addresses of a container's interface by its own account, IPv4 first.
func (p *podmanHost) addrs(name, device string) []netip.Addr {
	p.t.Helper()
	var all []netip.Addr
	for _, line := range strings.Split(p.podman("exec", name, "ip", "-o", "addr", "show", "dev", device, "scope", "global"), "\n") {
		if fields := strings.Fields(line); len(fields) > 3 {
			prefix, err := netip.ParsePrefix(fields[3])
			check(p.t, err)
			all = append(all, prefix.Addr())
		}
	}
	return all
}

// mac is that of a container's eth0 by its own account.
func (p *podmanHost) mac(name string) string {
	p.t.Helper()
	return p.podman("exec", name, "cat", "/sys/class/net/eth0/address")
}

// kill ends those processes of the container web that a template for podman inspect names, as a machine out of memory does.
func (p *podmanHost) kill(template string) {
	p.t.Helper()
	_, err := p.try("kill", append([]string{"-KILL"}, strings.Fields(p.podman("inspect", "-f", template, "web"))...)...)
	check(p.t, err)
}

// asks is a command for sh that asks a web server who asks. Debian's busybox dies of its own "wget -T" (SIGSEGV).
func asks(server string) string {
	return fmt.Sprintf("%s timeout 5 %[1]s wget -q -O - 'http://%s/cgi-bin/who'", busybox, server)
}

// who is the address that the host has for a web server at the given host and port.
func (p *podmanHost) who(server string) (netip.Addr, error) {
	return seen(p.try("sh", "-c", asks(server)))
}

// talk checks that a container reaches an address by ping and by HTTP, and is seen there with its own.
func (p *podmanHost) talk(name string, own, to netip.Addr) {
	p.t.Helper()
	script := fmt.Sprintf("ping -c 1 -W 5 %s >/dev/null && %s", to, asks(netip.AddrPortFrom(to, 80).String()))
	at, err := seen(p.tryPodman("exec", name, "sh", "-c", script))
	if err != nil || at != own {
		p.t.Errorf("%s sees %s as %s (%v), want %s", to, name, at, err, own)
	}
}

// seen is what a web server answered: of IPv6 in brackets, and there IPv4 is mapped.
func seen(text string, err error) (netip.Addr, error) {
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a.Unmap(), err
}

// counted are the numbers in rules that traffic moves, and the time of day.
var counted = regexp.MustCompile(`(?m)^# (Generated|Completed).*$|\[\d+:\d+\]`)

// trace returns what the host holds for containers, each line with its kind: links with their addresses, packet filters, what
// libcni remembers, and namespaces. Cgroups are podman's business: it leaves those of a container whose conmon was killed.
func (p *podmanHost) trace() ([]string, error) {
	var all []string
	add := func(kind string, lines ...string) {
		for _, line := range lines {
			if line = strings.TrimSpace(line); line != "" {
				all = append(all, kind+": "+line)
			}
		}
	}
	errs := []error{p.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			a := l.Attrs()
			add("link", fmt.Sprint(a.Name, " ", l.Type(), " ", a.Alias, " ", a.AltNames))
		}
		return err
	})}
	for _, program := range []string{"iptables-save", "ip6tables-save", "nft -s list table inet overlayd", "nft -s list table bridge overlayd"} {
		words := strings.Fields(program)
		text, err := p.try(words[0], words[1:]...)
		errs = append(errs, err)
		add(words[0], strings.Split(counted.ReplaceAllString(text, ""), "\n")...)
	}
	for kind, dir := range map[string]string{"cache": "/var/lib/cni/results", "namespace": "/run/netns"} {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/root%s/*", p.first, dir))
		errs = append(errs, err)
		add(kind, files...)
	}
	slices.Sort(all)
	return all, errors.Join(errs...)
}

// hold is what the host holds.
func (p *podmanHost) hold() []string {
	p.t.Helper()
	all, err := p.trace()
	check(p.t, err)
	return all
}

// names says whether a line of the kind has the text in it.
func names(lines []string, kind, text string) bool {
	return slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, kind+": ") && strings.Contains(line, text) })
}

// back waits until the host holds what it held before. The daemon hears of a pod's end in its own time.
func (p *podmanHost) back(before []string) {
	p.t.Helper()
	if err := lab.Within(backPatience, "nothing is left", func() error {
		now, err := p.trace()
		var differs []string
		for sign, side := range map[string][2][]string{"+ ": {now, before}, "- ": {before, now}} {
			for _, line := range side[0] {
				if !slices.Contains(side[1], line) {
					differs = append(differs, sign+line)
				}
			}
		}
		if err == nil && !slices.Equal(now, before) {
			err = fmt.Errorf("%d lines were %d:\n%s", len(now), len(before), strings.Join(differs, "\n"))
		}
		return err
	}); err != nil {
		p.t.Error(err)
	}
}
