package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// Host is a machine: a network namespace with eth0 on the switch, and the daemon if it was started.
type Host struct {
	*Netns
	ID     string // its name without the lab's
	Addr   string // on the underlay
	Dir    string
	lab    *Lab
	router *Host // on the way to the switch; nil when it is there itself
	daemon *Process
	pods   []*Pod
}

// Host adds a machine with the given address to the underlay.
func (l *Lab) Host(name, addr string) (*Host, error) {
	h, err := l.unplugged(name, addr)
	if err != nil {
		return nil, err
	}
	return h, h.Plug()
}

// unplugged is a machine without a cable.
func (l *Lab) unplugged(name, addr string) (*Host, error) {
	n, err := NewNetns(l.scoped(name))
	if err != nil {
		return nil, err
	}
	h := &Host{Netns: n, ID: name, Addr: addr, Dir: filepath.Join(l.Dir, name), lab: l}
	l.hosts = append(l.hosts, h)
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return nil, err
	}
	profile := fmt.Sprintf("export PATH=%s:$PATH PS1='[%s] # ' %s\n", l.Binaries, name, strings.Join(h.Env(), " "))
	if err := os.WriteFile(h.Profile(), []byte(profile), 0o600); err != nil {
		return nil, err
	}
	return h, n.Echo()
}

// Plug connects the machine to the switch by its cable: eth0 with its address. It does so again after eth0 was deleted.
func (h *Host) Plug() error { return h.lab.plug(h.Netns, h.ID, h.Addr) }

// Hosts are the machines in the order in which they were added.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Env is the environment in which overlayd and its commands are run on the host.
func (h *Host) Env() []string {
	return append([]string{
		"OVERLAYD_ETCD_ENDPOINTS=" + EtcdEndpoint, "OVERLAYD_NODE_NAME=" + h.ID, "OVERLAYD_IFACE=eth0",
		"OVERLAYD_RUN_DIR=" + filepath.Join(h.Dir, "run"), "OVERLAYD_STATE_DIR=" + filepath.Join(h.Dir, "state"),
	}, h.lab.cluster.env(h.ID)...)
}

// Profile is a file with the host's environment for a shell inside the lab.
func (h *Host) Profile() string { return filepath.Join(h.Dir, "profile") }

// Start starts the daemon. It does not wait for it.
func (h *Host) Start(flags ...string) (err error) {
	h.daemon, err = start(h.Netns, filepath.Join(h.Dir, "overlayd.log"), h.Env(), filepath.Join(h.lab.Binaries, "overlayd"), flags...)
	return err
}

// Daemon is the daemon last started, nil before.
func (h *Host) Daemon() *Process { return h.daemon }

// Overlayd runs a command of overlayd on the host and returns what it prints.
func (h *Host) Overlayd(args ...string) (string, error) {
	return h.Output(h.Env(), filepath.Join(h.lab.Binaries, "overlayd"), args...)
}

// Ready waits until the daemon says that it is ready and knows the given number of peers.
func (h *Host) Ready(peers int) error {
	return Eventually(fmt.Sprintf("%s is ready with %d peers", h.ID, peers), func() error {
		if err := h.daemon.Exited(); err != nil {
			return err
		}
		text, err := h.Overlayd("status", "--json")
		if err != nil {
			return errors.Join(err, errors.New(text))
		}
		var status struct{ Peers int }
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return err
		}
		if status.Peers != peers {
			return fmt.Errorf("it knows %d peers", status.Peers)
		}
		return nil
	})
}

// Subnets are the host's, as its node file tells the plugin.
func (h *Host) Subnets() ([]netip.Prefix, error) {
	text, err := os.ReadFile(filepath.Join(h.Dir, "run", "node.json"))
	if err != nil {
		return nil, err
	}
	var node struct{ Subnets []netip.Prefix }
	if err := json.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("node file of %s: %w", h.ID, err)
	}
	return node.Subnets, nil
}

// Pod is a container without the container: a namespace that the plugin attached.
type Pod struct {
	*Netns
	ID    string
	Host  *Host
	Addrs []netip.Addr
}

// conflist is what an admin writes to /etc/cni/net.d.
const conflist = `{"cniVersion": "1.0.0", "name": "overlay", "plugins": [{"type": "overlay", "nodeFile": %q}]}`

// Pod makes a namespace on the host and attaches it as a runtime would, through libcni.
func (h *Host) Pod(name string) (*Pod, error) {
	n, err := NewNetns(h.lab.scoped(name))
	if err != nil {
		return nil, err
	}
	p := &Pod{Netns: n, ID: name, Host: h}
	h.pods = append(h.pods, p)
	if err := n.Echo(); err != nil {
		return nil, err
	}
	return p, p.Attach()
}

// Attach calls the plugin's ADD.
func (p *Pod) Attach() error {
	return p.cni(func(c libcni.CNI, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		answer, err := c.AddNetworkList(context.Background(), list, rt)
		if err != nil {
			return fmt.Errorf("attach %s: %w", p.ID, err)
		}
		result, err := current.NewResultFromResult(answer)
		if err != nil {
			return err
		}
		p.Addrs = nil
		for _, ip := range result.IPs {
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				p.Addrs = append(p.Addrs, a.Unmap())
			}
		}
		return nil
	})
}

// Detach calls the plugin's DEL. The namespace stays.
func (p *Pod) Detach() error {
	return p.cni(func(c libcni.CNI, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return c.DelNetworkList(context.Background(), list, rt)
	})
}

func (p *Pod) cni(f func(libcni.CNI, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, conflist, filepath.Join(p.Host.Dir, "run", "node.json")))
	if err != nil {
		return err
	}
	c := libcni.NewCNIConfigWithCacheDir([]string{p.Host.lab.Binaries}, filepath.Join(p.Host.Dir, "cni"), nil)
	rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.Path(), IfName: "eth0"}
	return p.Host.Do(func() error { return f(c, list, rt) }) // the plugin runs where the runtime runs
}

// Logs returns what every process of the lab has printed, for when something fails.
func (l *Lab) Logs() string {
	var b strings.Builder
	show := func(name string, p *Process) {
		if p != nil {
			fmt.Fprintf(&b, "--- %s\n%s\n", name, p.Log())
		}
	}
	show("etcd", l.server)
	if l.cluster != nil {
		for _, m := range l.cluster.Members {
			show(m.Name, m.process)
		}
	}
	for _, h := range l.hosts {
		show(h.ID, h.daemon)
	}
	return b.String()
}

// Stop ends the daemon as systemd would.
func (h *Host) Stop() error { return h.daemon.End(unix.SIGTERM) }

// Kill ends the daemon without a chance to tidy up.
func (h *Host) Kill() error { return h.daemon.End(unix.SIGKILL) }

// Plugin is a call of the plugin with the given environment and network configuration; run it inside [Netns.Do].
func (h *Host) Plugin(conf string, env ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.lab.Binaries, "overlay"))
	cmd.Env, cmd.Stdin = env, strings.NewReader(conf)
	return cmd
}
