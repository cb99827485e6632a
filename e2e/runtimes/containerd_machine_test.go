package runtimes

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// debian is where Debian keeps CNI plugins.
const debian = "/usr/lib/cni"

const testImage = "localhost/busybox:1"

// machine is a host with a containerd. It has mounts and processes of its own: what containerd keeps at places that cannot be
// chosen is not the real machine's, and with its first process all others end, whoever started them.
type machine struct {
	*lab.Host
	dir    string    // its name is short: a socket's has 107 bytes at most
	cgroup string    // parent of all its containers'
	first  *exec.Cmd // process 1
	server *server   // containerd
}

// server is one run of containerd.
type server struct {
	*exec.Cmd
	ended chan struct{}
}

// furniture hides what containerd, ctr and libcni would write to. /var/lib/cni need not exist on the real machine, so that what
// is above it is hidden. The shell then waits, and so reaps the shims that containerd leaves to process 1.
const furniture = `set -e
mkdir -p /run/netns /run/containerd
mount -t proc proc /proc
for dir in /run/netns /run/containerd /var/lib /opt /etc/cni; do
	mount -t tmpfs tmpfs $dir
done
mkdir -p /opt/cni/bin /etc/cni/net.d
mount --bind "$1/bin" /opt/cni/bin
mount --bind "$1/net.d" /etc/cni/net.d
sleep infinity &
: >"$1/furnished"
wait
`

func needContainerd(t *testing.T) {
	t.Helper()
	need(t, "containerd", "ctr", "runc", "iptables-save", "ip6tables-save", debian+"/loopback", debian+"/portmap", debian+"/bandwidth")
	if lab.Rootless() {
		t.Skip("runc makes cgroups: run as root")
	}
}

// newMachine furnishes a host and starts containerd on it. All ends with the test; cgroups, which runc makes outside the lab, are
// removed.
func newMachine(t *testing.T, h *lab.Host) *machine {
	t.Helper()
	dir, err := os.MkdirTemp(lab.TempDir, "")
	check(t, err)
	// Cgroups are the machine's own: the name tells a reader there who made them.
	m := &machine{Host: h, dir: dir, cgroup: lab.Cgroup(h.Name)}
	check(t, errors.Join(os.Mkdir(m.file("bin"), 0o755), os.Mkdir(m.file("net.d"), 0o755)))
	for _, name := range []string{"loopback", "portmap", "bandwidth"} {
		check(t, os.Symlink(filepath.Join(debian, name), m.file("bin/"+name)))
	}
	check(t, os.WriteFile(m.file("config.toml"), fmt.Appendf(nil, serverConfig, dir, testImage), 0o644))
	var complaint bytes.Buffer
	m.first = exec.Command("sh", "-c", furniture, "furniture", dir)
	m.first.Stderr = &complaint
	m.first.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	check(t, m.Do(m.first.Start))
	t.Cleanup(func() { m.end(t) })
	if err := lab.Eventually("the furniture of "+h.ID, func() error { return exists(m.file("furnished")) }); err != nil {
		t.Fatal(err, complaint.String())
	}
	m.serve(t)
	return m
}

// serverConfig wants a directory and an image. Rights and controllers that a container, in which tests may run, lacks are not
// asked for; a profile of AppArmor would be loaded into the real machine's kernel.
const serverConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[debug]
  level = "warn"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "/etc/cni/net.d"
    bin_dir = "/opt/cni/bin"
    max_conf_num = 1
`

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

// seen is a path of the machine's as the test sees it.
func (m *machine) seen(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.first.Process.Pid), path)
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// enter runs f on a thread inside the machine; processes that f starts are the machine's.
func (m *machine) enter(f func() error) error {
	return m.Do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads that share a working directory share mounts
			return err
		}
		pid, err := unix.PidfdOpen(m.first.Process.Pid, 0)
		if err != nil {
			return err
		}
		err = unix.Setns(pid, unix.CLONE_NEWNS|unix.CLONE_NEWPID)
		if err := errors.Join(err, unix.Close(pid)); err != nil {
			return fmt.Errorf("enter %s: %w", m.ID, err)
		}
		return f()
	})
}

// serve starts containerd, again after [machine.crash], and waits until it answers.
func (m *machine) serve(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(m.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close()
	s := &server{exec.Command("containerd", "--config", m.file("config.toml")), make(chan struct{})}
	s.Stdout, s.Stderr = log, log
	check(t, m.enter(s.Start))
	go func() {
		_ = s.Wait() // it is killed
		close(s.ended)
	}()
	m.server = s
	check(t, lab.Eventually("containerd answers", func() error {
		_, err := m.ctr("version")
		return err
	}))
}

// crash kills containerd. Shims and containers go on.
func (m *machine) crash(t *testing.T) {
	t.Helper()
	check(t, m.server.Process.Kill())
	<-m.server.ended
}

// end kills all processes of the machine and removes their cgroups.
func (m *machine) end(t *testing.T) {
	if text, err := os.ReadFile(m.file("log")); err == nil && t.Failed() {
		t.Logf("containerd of %s\n%s", m.ID, text)
	}
	if err := m.first.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = m.first.Wait() // returns when the last process of the machine has ended: pid_namespaces(7)
	if m.server != nil {
		<-m.server.ended
	}
	if err := errors.Join(lab.RemoveCgroups(m.cgroup), os.RemoveAll(m.dir)); err != nil {
		t.Error(err)
	}
}

// ctr runs containerd's own client and returns what it prints.
func (m *machine) ctr(args ...string) (string, error) {
	cmd := exec.Command("ctr", append([]string{"--address", m.file("c.sock")}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := m.enter(cmd.Run); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s%s", strings.Join(args, " "), err, out.String(), complaint.String())
	}
	return out.String(), nil
}

// install restarts the daemon so that it installs the plugin and the configuration list, and waits for the list.
func (m *machine) install(t *testing.T) {
	t.Helper()
	check(t, m.Stop())
	m.restart(t)
	check(t, lab.Eventually("the list of "+m.ID, func() error { return exists(m.file("net.d/10-overlay.conflist")) }))
}

// restart starts the daemon with a runtime's directories.
func (m *machine) restart(t *testing.T) {
	t.Helper()
	check(t, m.Start("--cni-conf-dir", m.file("net.d"), "--cni-bin-dir", m.file("bin")))
}

// wrap runs lines of a shell before each call of the plugin, until the test ends.
func (m *machine) wrap(t *testing.T, lines string) {
	t.Helper()
	plugin := m.file("bin/overlay")
	check(t, os.Rename(plugin, plugin+".real"))
	check(t, os.WriteFile(plugin, fmt.Appendf(nil, "#!/bin/sh\n%s\nexec %s.real\n", lines, plugin), 0o755)) //nolint:gosec // a program
	t.Cleanup(func() { check(t, os.Rename(plugin+".real", plugin)) })
}

// record keeps what the plugin is called with until the test ends: command, container, namespace, - for none.
func (m *machine) record(t *testing.T) (calls func() []string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "calls")
	m.wrap(t, "echo $CNI_COMMAND $CNI_CONTAINERID ${CNI_NETNS:--} >>"+log)
	return func() []string {
		text, err := os.ReadFile(log)
		check(t, err)
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

// leftovers is what pods hold on the machine, a line each: links and addresses, rules, libcni's memory, namespaces, processes,
// cgroups.
func (m *machine) leftovers() (lines []string, err error) {
	add := func(kind, text string) { lines = append(lines, kind+" "+text) }
	links, err := m.podLinks()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		add("link", fmt.Sprintf("%s %s %q of %q", l.Type(), l.Attrs().Name, l.Attrs().AltNames, l.Attrs().Alias))
	}
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		rules, err := m.Output(nil, program, "-t", "nat")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(rules) {
			if strings.Contains(line, "CNI-DN-") { // portmap's chain for one pod; the chains for all of them stay
				add("rule", strings.TrimSpace(line))
			}
		}
	}
	for kind, pattern := range map[string]string{"cached": "/var/lib/cni/*/*", "namespace": "/run/netns/*"} {
		paths, err := filepath.Glob(m.seen(pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			add(kind, filepath.Base(path))
		}
	}
	processes, err := filepath.Glob(m.seen("/proc/[0-9]*/cmdline"))
	if err != nil {
		return nil, err
	}
	for _, path := range processes {
		text, err := os.ReadFile(path)
		line := strings.Join(strings.Split(string(text), "\x00"), " ")
		if err == nil && !strings.HasPrefix(line, "sh -c set -e") && line != "sleep infinity " && !strings.HasPrefix(line, "containerd --config") {
			add("process", line)
		}
	}
	groups, err := lab.Cgroups(m.cgroup)
	for _, dir := range groups {
		if !strings.HasSuffix(dir, m.cgroup) { // the parent is not a pod's
			add("cgroup", dir)
		}
	}
	return lines, err
}

// kinds are those of the machine's leftovers.
func (m *machine) kinds(t *testing.T) string {
	t.Helper()
	lines, err := m.leftovers()
	check(t, err)
	for i, line := range lines {
		lines[i], _, _ = strings.Cut(line, " ")
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), " ")
}

// podLinks are the host's devices that are there for pods, or hold an address as pods' do.
func (m *machine) podLinks() (links []netlink.Link, err error) {
	err = m.Do(func() error {
		links, err = netlink.LinkList()
		return err
	})
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		return slices.Contains([]string{"lo", "eth0", "ovl0", "overlay.1"}, l.Attrs().Name) && len(l.Attrs().AltNames) == 0
	}), err
}

// clean waits until nothing is left of pods but lines of the given kinds: shims and the kernel take their time.
func (m *machine) clean(t *testing.T, but ...string) {
	t.Helper()
	err := lab.Eventually("nothing is left of pods on "+m.ID, func() error {
		lines, err := m.leftovers()
		lines = slices.DeleteFunc(lines, func(line string) bool { return slices.Contains(but, strings.Fields(line)[0]) })
		if len(lines) > 0 {
			err = errors.Join(err, errors.New(strings.Join(lines, "\n")))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
