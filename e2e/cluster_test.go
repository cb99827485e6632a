package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/e2e/lab"
)

// clusterPatience is that of stories in which a connection dies in silence, which takes 15 s to notice.
const clusterPatience = 30 * time.Second

// cluster is a network whose etcd is a real cluster with TLS and rights.
type cluster struct {
	*lab.Cluster
	t     *testing.T
	lab   *lab.Lab
	hosts []*lab.Host
	pods  []*lab.Pod
	flows []*lab.Flow
}

// onCluster makes a network of two hosts, each with a pod, and traffic between the pods.
func onCluster(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	t.Parallel()
	lab.NeedEtcd(t)
	l, err := lab.New(name, t.TempDir(), lab.Binaries())
	check(t, err)
	c := &cluster{t: t, lab: l}
	t.Cleanup(func() {
		for _, f := range c.flows {
			f.Stop()
		}
		if t.Failed() {
			t.Log(l.Logs())
		}
		if err := l.Close(); err != nil {
			t.Log("take the lab down: ", err)
		}
	})
	c.Cluster, err = l.Cluster()
	check(t, err)
	check(t, c.Authorize("host1", "host2", "host3", "host4"))
	one, two := c.host(), c.host()
	check(t, c.Configure(one, `{"Network": "10.5.0.0/16"}`))
	for _, h := range c.hosts {
		check(t, h.Start(flags...))
	}
	check(t, one.Ready(1))
	check(t, two.Ready(1))
	from, err := one.Pod("pod1")
	check(t, err)
	to, err := two.Pod("pod2")
	check(t, err)
	flow, err := from.Traffic(to.Addrs[0])
	check(t, err)
	c.pods, c.flows = []*lab.Pod{from, to}, append(c.flows, flow)
	return c
}

// host adds the next host. Its daemon is not started.
func (c *cluster) host() *lab.Host {
	c.t.Helper()
	n := len(c.hosts) + 1
	h, err := c.lab.Host(fmt.Sprintf("host%d", n), fmt.Sprintf("192.0.2.%d", 6+n))
	check(c.t, err)
	c.hosts = append(c.hosts, h)
	return h
}

// nothingLost makes sure that traffic flowed all the time, that all daemons run and that each host has a subnet of its own.
func (c *cluster) nothingLost() {
	c.t.Helper()
	for _, f := range c.flows {
		if sent, lost := f.Stop(); sent == 0 || len(lost) > 0 {
			c.t.Errorf("of %d datagrams %d were lost: %v", sent, len(lost), lost)
		}
	}
	c.flows = nil
	owners := map[string]string{}
	for _, h := range c.hosts {
		check(c.t, h.Ready(len(c.hosts)-1))
		subnets, err := h.Subnets()
		check(c.t, err)
		for _, p := range subnets {
			if other := owners[p.String()]; other != "" {
				c.t.Errorf("%s and %s have %s", other, h.ID, p)
			}
			owners[p.String()] = h.ID
		}
	}
	text, err := c.Ctl(lab.Root, "get", "--prefix", "--keys-only", "/overlayd/network/subnets/")
	check(c.t, err)
	if n := len(strings.Fields(text)); n != len(c.hosts) {
		c.t.Errorf("%d hosts have leases at\n%s", len(c.hosts), text)
	}
}

// told waits until a host's status has or, with not, lacks a text.
func (c *cluster) told(h *lab.Host, not bool, text string) {
	c.t.Helper()
	check(c.t, lab.Within(clusterPatience, fmt.Sprintf("status of %s with %q: %t", h.ID, text, !not), func() error {
		got, err := h.Overlayd("status")
		if got == "" || strings.Contains(got, text) == not {
			return errors.Join(err, errors.New(got))
		}
		return nil
	}))
}

// renewal waits until a host has renewed its lease, and returns how long that took.
func (c *cluster) renewal(h *lab.Host) time.Duration {
	c.t.Helper()
	start, before := time.Now(), leaseEnd(c.t, h)
	check(c.t, lab.Within(clusterPatience, h.ID+" renews its lease", func() error {
		now := leaseEnd(c.t, h)
		if now > before {
			return nil
		}
		before = now
		return fmt.Errorf("it lasts for another %f s", now)
	}))
	return time.Since(start)
}

func leaseEnd(t *testing.T, h *lab.Host) float64 {
	t.Helper()
	text, err := overSocket(h, "/status")
	check(t, err)
	var r struct {
		LeaseEnd float64 `json:"leaseEndSeconds"`
	}
	check(t, json.Unmarshal(text, &r))
	if r.LeaseEnd <= 0 {
		t.Errorf("the lease of %s ended %f s ago", h.ID, -r.LeaseEnd)
	}
	return r.LeaseEnd
}

// joins starts the next host and waits until all know each other.
func (c *cluster) joins() {
	c.t.Helper()
	h := c.host()
	check(c.t, h.Start())
	c.meet()
}

func (c *cluster) meet() {
	c.t.Helper()
	for _, h := range c.hosts {
		check(c.t, lab.Within(clusterPatience, h.ID+" knows all", func() error { return h.Ready(len(c.hosts) - 1) }))
	}
}

// TestALeaderIsKilledDuringAJoin: the join goes on with the next leader.
func TestALeaderIsKilledDuringAJoin(t *testing.T) {
	c := onCluster(t, "c1")
	for range 2 {
		leader, _, err := c.Leader()
		check(t, err)
		h := c.host()
		check(t, h.Start())
		check(t, leader.Kill())
		c.meet()
		check(t, leader.Start())
	}
	c.nothingLost()
}

// TestAMemberIsPausedAndAnotherCutOff: their connections stand and are silent. Hosts go on with the other members, renew their
// leases before they end, which are twice as long as a dead connection goes unnoticed (14 s), and hear of each other.
func TestAMemberIsPausedAndAnotherCutOff(t *testing.T) {
	for _, s := range []struct {
		name       string
		away, back func(c *cluster, m *lab.Member) error
	}{
		{"paused", func(_ *cluster, m *lab.Member) error { return m.Pause() }, func(_ *cluster, m *lab.Member) error { return m.Resume() }},
		{"cut off", func(c *cluster, m *lab.Member) error { return c.lab.Cut(m.Name) }, func(c *cluster, m *lab.Member) error { return c.lab.Heal(m.Name) }},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := onCluster(t, "c2"+s.name[:1], "--lease-ttl=30s")
			m, _, err := c.Leader()
			check(t, err)
			check(t, s.away(c, m))
			start := time.Now()
			c.joins()
			t.Logf("with %s %s: a join is known after %s", m.Name, s.name, time.Since(start).Round(time.Millisecond))
			t.Logf("with %s %s: renewed after another %s", m.Name, s.name, c.renewal(c.hosts[0]).Round(time.Millisecond))
			check(t, s.back(c, m))
			c.nothingLost()
			c.told(c.hosts[0], true, "store, since")
		})
	}
}

// TestAClusterWithoutAQuorum changes nothing for pods. Hosts say that the store is in trouble, and it passes by itself.
func TestAClusterWithoutAQuorum(t *testing.T) {
	c := onCluster(t, "c3")
	one := c.hosts[0]
	check(t, c.Members[0].Pause())
	check(t, c.Members[1].Kill())
	c.told(one, false, "degraded  store, since")
	pod, err := one.Pod("pod3")
	check(t, err)
	_, err = pod.Ping(c.pods[1].Addrs[0])
	check(t, err)
	three := c.host()
	check(t, three.Start())
	check(t, c.Members[0].Resume())
	check(t, c.Members[1].Start())
	c.meet()
	c.told(one, true, "store, since")
	c.nothingLost()
}

// TestTheLeastRightsAreEnough: with the role that dist/etcd-role.sh makes, hosts and commands do what they must, and can
// neither write the configuration nor look at what is not theirs.
func TestTheLeastRightsAreEnough(t *testing.T) {
	c := onCluster(t, "c4")
	one := c.hosts[0]
	_, err := c.Ctl(lab.Root, "put", "/secret", "of somebody else")
	check(t, err)
	const below = "/overlayd/network"
	for _, may := range [][]string{
		{"get", below + "/config"}, {"get", "--prefix", below + "/subnets/"}, {"get", "--prefix", below + "/overlayd/"}, {"put", below + "/overlayd/x", "x"}, {"del", below + "/overlayd/x"},
	} {
		_, err := c.Ctl("host1", may...)
		check(t, err)
	}
	for _, mayNot := range [][]string{
		{"put", below + "/config", "{}"}, {"del", below + "/config"}, {"get", "/secret"}, {"put", "/secret", "x"}, {"get", "--prefix", below}, {"get", "--prefix", "/"},
		{"get", "--prefix", below + "/overlay"}, {"put", below + "/subnets", "x"}, {"user", "add", "x", "--no-password"}, {"auth", "disable"}, {"watch", "/secret"},
	} {
		if text, err := c.Ctl("host1", append([]string{"--command-timeout=3s"}, mayNot...)...); err == nil || !strings.Contains(err.Error()+text, "permission denied") {
			t.Errorf("etcdctl %s: %s %v", mayNot, text, err)
		}
	}
	for _, args := range [][]string{{"leases"}, {"leases", "reserve", "host4", "10.5.77.0/24"}, {"leases", "release", "host4"}, {"plan"}, {"status"}, {"config", "get"}} {
		if text, err := one.Overlayd(args...); err != nil {
			t.Errorf("overlayd %s: %s %v", args, text, err)
		}
	}
	file := filepath.Join(t.TempDir(), "net.json")
	check(t, os.WriteFile(file, []byte(`{"Network": "10.6.0.0/16"}`), 0o600))
	if text, err := one.Overlayd("config", "set", "--force", file); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("overlayd config set: %s %v", text, err)
	}
	c.joins()
	c.nothingLost()
	check(t, c.Role("host1", "host5")) // more hosts, when rights count already
	check(t, c.Certify("host5", time.Now().Add(day)))
	_, err = c.Ctl("host5", "get", below+"/config")
	check(t, err)
}

// TestAPasswordIsTold to nobody but etcd, and goes on working when the servers are restarted and have forgotten what they
// gave for it.
func TestAPasswordIsTold(t *testing.T) {
	const planted = "xyzzy-correct-horse"
	c := onCluster(t, "c5", "--lease-ttl=30s")
	for _, args := range [][]string{{"user", "delete", "host3"}, {"user", "add", "keeper:" + planted}, {"user", "grant-role", "keeper", "overlayd"}} {
		_, err := c.Ctl(lab.Root, args...)
		check(t, err)
	}
	file := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(file, []byte(planted+"\n"), 0o600))
	h := c.host()
	check(t, h.Start("--etcd-username=keeper", "--etcd-password-file="+file, "--lease-ttl=10s"))
	c.meet()
	check(t, errors.Join(c.Members[0].Kill(), c.Members[1].Kill(), c.Members[2].Kill()))
	check(t, errors.Join(c.Members[0].Start(), c.Members[1].Start(), c.Members[2].Start()))
	c.renewal(h)
	c.joins()
	c.nothingLost()
	log := h.Daemon().Log()
	if strings.Contains(log, "auth token") || strings.Contains(log, "permission denied") {
		t.Errorf("what tokens are came to light:\n%s", log)
	}
	said := map[string]string{"the log": log}
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.Daemon().PID(), name))
		check(t, err)
		said["/proc/PID/"+name] = string(text)
	}
	for _, path := range []string{"/status", "/metrics", "/readyz", "/plan"} {
		text, err := overSocket(h, path)
		check(t, err)
		said[path] = string(text)
	}
	for _, args := range [][]string{{"--help"}, {"status"}, {"status", "--json"}, {"leases", "--etcd-username=keeper", "--etcd-password-file=" + file}} {
		text, err := h.Overlayd(args...)
		check(t, err)
		said[strings.Join(args, " ")] = text
	}
	check(t, filepath.Walk(h.Dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		said[name] = string(text)
		return err
	}))
	for where, text := range said {
		if text == "" || strings.Contains(text, planted) {
			t.Errorf("%s says\n%s", where, text)
		}
	}
}

// TestWhatIsGoingToBeAProblemIsSaid: certificates that end soon or cannot be read, and servers with holes.
func TestWhatIsGoingToBeAProblemIsSaid(t *testing.T) {
	c := onCluster(t, "c6")
	one, three := c.hosts[0], c.host()
	check(t, c.Certify(three.ID, time.Now().Add(3*day)))
	check(t, three.Start("--allow-old-etcd"))
	c.told(one, false, "degraded  store: https://192.0.2.1:2379 runs etcd 3.4.23, https://192.0.2.2:2379 runs etcd 3.4.23")
	check(t, lab.Eventually("it is logged", func() error {
		if log := one.Daemon().Log(); !strings.Contains(log, "CVE-2026-33413") || !strings.Contains(log, "--allow-old-etcd") {
			return errors.New(log)
		}
		return nil
	}))
	c.told(one, true, "certificate")
	c.told(three, false, "this host's certificate ends at ")

	cert, _ := c.Files(one.ID)
	check(t, os.WriteFile(cert, []byte("junk"), 0o600))
	c.told(one, false, "degraded  certificates, since")
	text, err := overSocket(one, "/metrics")
	check(t, err)
	if !strings.Contains(string(text), "\noverlayd_tls_reload_errors_total 1\n") {
		t.Errorf("a bad file is not counted:\n%s", text)
	}
	check(t, c.Certify(one.ID, time.Now().Add(30*day)))
	c.told(one, true, "certificate")
	if text, err := three.Overlayd("status"); err != nil || strings.Contains(text+three.Daemon().Log(), "CVE") {
		t.Errorf("%v, with --allow-old-etcd it says\n%s%s", err, text, three.Daemon().Log())
	}
	c.nothingLost()
}

const day = 24 * time.Hour
