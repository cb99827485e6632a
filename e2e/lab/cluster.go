package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// Cluster is a real etcd, Debian's, of three machines on the underlay. Everybody who speaks to it shows a certificate, whose
// common name is a user; root may do everything.
type Cluster struct {
	Members []*Member
	lab     *Lab
	ca      *etcdtest.Authority
}

// Member is one machine of a cluster; its name is also that of its cable.
type Member struct {
	*Netns
	Name, Addr string
	process    *Process
	flags      []string
	log        string
}

// NeedEtcd skips a test where Debian's etcd is not installed, and fails it in CI, where it must be.
func NeedEtcd(t testing.TB) {
	t.Helper()
	Need(t)
	for _, name := range []string{"etcd", "etcdctl"} {
		switch _, err := exec.LookPath(name); {
		case err != nil && os.Getenv("CI") != "":
			t.Fatalf("needs Debian's etcd-server and etcd-client: %v", err)
		case err != nil:
			t.Skipf("needs Debian's etcd-server and etcd-client: %v", err)
		}
	}
}

// Root is the user who may do everything.
const Root = "root"

// Cluster starts a cluster of three members at 192.0.2.1 to 192.0.2.3 in which nobody needs rights yet, and waits until it
// answers root. Hosts speak to it from now on.
func (l *Lab) Cluster() (*Cluster, error) {
	c := &Cluster{lab: l}
	err := os.MkdirAll(c.file(""), 0o755)
	if err == nil {
		c.ca, err = etcdtest.NewAuthority(c.file("ca.pem"))
	}
	if err != nil {
		return nil, err
	}
	l.cluster = c
	var peers []string
	for i := range 3 {
		m := &Member{Name: fmt.Sprintf("etcd%d", i+1), Addr: fmt.Sprintf("192.0.2.%d", i+1)}
		m.log = filepath.Join(l.Dir, m.Name+".log")
		if m.Netns, err = NewNetns(l.scoped(m.Name)); err != nil {
			return nil, err
		}
		c.Members = append(c.Members, m)
		if err := l.plug(m.Netns, m.Name, m.Addr); err != nil {
			return nil, err
		}
		peers = append(peers, m.Name+"="+m.peer())
	}
	if err := c.Certify("server", time.Now().Add(day), "192.0.2.1", "192.0.2.2", "192.0.2.3"); err != nil {
		return nil, err
	}
	for _, m := range c.Members {
		m.flags = []string{
			"--name", m.Name, "--data-dir", filepath.Join(l.Dir, m.Name), "--logger", "zap", "--log-outputs", "stderr", "--log-level", "error",
			"--listen-client-urls", m.URL(), "--advertise-client-urls", m.URL(), "--cert-file", c.file("server.pem"), "--key-file", c.file("server.key"),
			"--trusted-ca-file", c.file("ca.pem"), "--client-cert-auth",
			"--listen-peer-urls", m.peer(), "--initial-advertise-peer-urls", m.peer(), "--initial-cluster", strings.Join(peers, ","),
		}
		if err := m.Start(); err != nil {
			return nil, err
		}
	}
	if err := c.Certify(Root, time.Now().Add(day)); err != nil {
		return nil, err
	}
	return c, Eventually("the cluster answers", func() error {
		_, err := c.Ctl(Root, "get", "/")
		return err
	})
}

const day = 24 * time.Hour

func (c *Cluster) file(name string) string { return filepath.Join(c.lab.Dir, "pki", name) }

// Certify writes the certificate of a user, or of a server at addresses.
func (c *Cluster) Certify(user string, end time.Time, addrs ...string) error {
	want := etcdtest.Certificate{Name: user, NotAfter: end, Cert: c.file(user + ".pem"), Key: c.file(user + ".key")}
	for _, a := range addrs {
		want.Name = "" // the server itself has no rights
		want.Addrs = append(want.Addrs, net.ParseIP(a))
	}
	return c.ca.Issue(want)
}

// Files are the certificate of a user and its key.
func (c *Cluster) Files(user string) (cert, key string) {
	return c.file(user + ".pem"), c.file(user + ".key")
}

// Authorize makes rights count: the users get the role of a host and certificates for a month, and nobody else is let in.
func (c *Cluster) Authorize(users ...string) error {
	for _, u := range users {
		if err := c.Certify(u, time.Now().Add(30*day)); err != nil {
			return err
		}
	}
	if err := c.Role(users...); err != nil {
		return err
	}
	for _, args := range [][]string{{"user", "add", Root, "--no-password"}, {"user", "grant-role", Root, Root}, {"auth", "enable"}} {
		if _, err := c.Ctl(Root, args...); err != nil {
			return err
		}
	}
	return nil
}

// Role gives users the rights of a host: it runs dist/etcd-role.sh, as root.
func (c *Cluster) Role(users ...string) error {
	root, err := ModuleRoot()
	if err != nil {
		return err
	}
	_, err = c.Members[0].Output(c.ctl(Root), filepath.Join(root, "dist", "etcd-role.sh"), users...)
	return err
}

// Configure sets the network's configuration as an admin would, on a host.
func (c *Cluster) Configure(h *Host, text string) error {
	file := c.file("net.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := h.Output(append(h.Env(), c.env(Root)...), filepath.Join(c.lab.Binaries, "overlayd"), "config", "set", file)
	return err
}

// Ctl runs etcdctl as a user and returns what it prints.
func (c *Cluster) Ctl(user string, args ...string) (string, error) {
	return c.Members[0].Output(c.ctl(user), "etcdctl", args...)
}

func (c *Cluster) ctl(user string) []string {
	cert, key := c.Files(user)
	return []string{"ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + c.endpoints(), "ETCDCTL_CACERT=" + c.file("ca.pem"), "ETCDCTL_CERT=" + cert, "ETCDCTL_KEY=" + key}
}

func (c *Cluster) endpoints() string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.URL())
	}
	return strings.Join(all, ",")
}

// env is what a host needs to speak to the cluster: nothing without one.
func (c *Cluster) env(host string) []string {
	if c == nil {
		return nil
	}
	cert, key := c.Files(host)
	return []string{
		"OVERLAYD_ETCD_ENDPOINTS=" + c.endpoints(), "OVERLAYD_ETCD_CAFILE=" + c.file("ca.pem"),
		"OVERLAYD_ETCD_CERTFILE=" + cert, "OVERLAYD_ETCD_KEYFILE=" + key,
	}
}

// Leader waits until a member of the cluster says of itself that it leads, and returns it first, then the others.
func (c *Cluster) Leader() (leader *Member, others []*Member, err error) {
	err = Eventually("the cluster has a leader", func() error {
		leader, others = nil, nil
		for _, m := range c.Members {
			text, err := m.Output(append(c.ctl(Root), "ETCDCTL_ENDPOINTS="+m.URL()), "etcdctl", "endpoint", "status", "-w", "json")
			if err != nil {
				return err
			}
			var all []struct {
				Status struct {
					Header struct {
						Member uint64 `json:"member_id"`
					}
					Leader uint64
				}
			}
			if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 {
				return errors.Join(err, errors.New(text))
			}
			if s := all[0].Status; s.Leader == s.Header.Member && leader == nil {
				leader = m
			} else {
				others = append(others, m)
			}
		}
		if leader == nil {
			return errors.New("nobody leads")
		}
		return nil
	})
	return leader, others, err
}

func (c *Cluster) close() (errs []error) {
	if c == nil {
		return nil
	}
	for _, m := range c.Members {
		if m.process != nil {
			errs = append(errs, m.Kill())
		}
		errs = append(errs, m.Remove())
	}
	return errs
}

// URL is where a member answers.
func (m *Member) URL() string { return "https://" + m.Addr + ":2379" }

func (m *Member) peer() string { return "http://" + m.Addr + ":2380" }

// Start starts a member, or the same again after it was killed. It does not wait for it.
func (m *Member) Start() (err error) {
	m.process, err = start(m.Netns, m.log, nil, "etcd", m.flags...)
	return err
}

// Kill ends a member at once; its data stays.
func (m *Member) Kill() error { return m.process.End(unix.SIGKILL) }

// Pause stops a member: its connections stand, the kernel takes new ones, and nothing is answered. Resume undoes it.
func (m *Member) Pause() error { return m.process.Signal(unix.SIGSTOP) }

// Resume undoes [Member.Pause].
func (m *Member) Resume() error { return m.process.Signal(unix.SIGCONT) }
