package runtimes

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/e2e/lab"
)

func TestContainersOfContainerdsCtrAreOnTheNetwork(t *testing.T) {
	t.Parallel()
	needContainerd(t)
	hosts := network(t, "ctr", `{"Network": "10.5.0.0/16"}`, 2)
	m := newMachine(t, hosts[0])
	m.install(t)
	check(t, m.Ready(1))
	peer, err := hosts[1].Pod("peer")
	check(t, err)
	root := rootFS(t)
	run := func(args ...string) []string {
		return append([]string{"run", "--cni", "--env", "PATH=/bin", "--cgroup", m.cgroup + "/ctr", "--rootfs"}, args...)
	}
	subnets, err := m.Subnets()
	check(t, err)

	t.Run("one that ends leaves nothing", func(t *testing.T) {
		calls := m.record(t)
		out, err := m.ctr(run("--rm", root, "once", "sh", "-c", fmt.Sprintf(
			"ip -o -4 addr show eth0 && ping -c 1 -W 10 %s && ping -c 1 -W 10 %s", peer.Addrs[0], subnets[0].Addr().Next()))...)
		check(t, err)
		if got := inet(out); got.Masked() != subnets[0] {
			t.Errorf("the container says\n%swant an address of %s", out, subnets[0])
		}
		m.clean(t)
		if got := calls(); len(got) != 2 || !strings.HasPrefix(got[0], "ADD default-once /proc/") || got[1] != "DEL default-once -" {
			t.Errorf("the plugin was called with\n%s\nwant an ADD and a DEL without a namespace", strings.Join(got, "\n"))
		}
	})

	t.Run("the address of one that ctr detaches and never reports gone is free again", func(t *testing.T) {
		calls := m.record(t)
		var had []string
		for range 2 {
			_, err := m.ctr(run("--detach", "--null-io", root, "left", "sleep", "3600")...)
			check(t, err)
			links, err := m.podLinks()
			check(t, err)
			if len(links) != 1 {
				t.Fatalf("the host has %d links for the container, want one", len(links))
			}
			had = append(had, links[0].Attrs().AltNames...)
			m.discard(t, "left")
			m.clean(t, "cached") // libcni forgets a result when somebody calls its DEL
		}
		if len(had) != 2 || had[0] != had[1] {
			t.Errorf("the container had the addresses %q, want one, twice", had)
		}
		if got := strings.Join(calls(), "\n"); strings.Contains(got, "DEL") || strings.Count(got, "ADD default-left") != 2 {
			t.Errorf("the plugin was called with\n%s\nwant two ADDs", got)
		}
	})
}

// discard kills a container of ctr and makes containerd forget it.
func (m *machine) discard(t *testing.T, id string) {
	t.Helper()
	_, err := m.ctr("task", "kill", "--signal", "SIGKILL", id)
	check(t, err)
	check(t, lab.Eventually("the task is removed", func() error { // not while it still runs
		_, err := m.ctr("task", "rm", id)
		return err
	}))
	_, err = m.ctr("containers", "rm", id)
	check(t, err)
}

// inet is the address in a line of ip(8).
func inet(line string) netip.Prefix {
	var p netip.Prefix
	if found := regexp.MustCompile(`inet (\S+)`).FindStringSubmatch(line); found != nil {
		p, _ = netip.ParsePrefix(found[1]) // the zero Prefix is no pod's
	}
	return p
}
