package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/e2e/lab"
	"github.com/overlayd/overlayd/subnet"
)

// hostile is a record that nobody may act on, and the reason for which it is skipped: "" when nobody even sees it.
type hostile struct{ key, value, reason string }

// junk returns the value of a flannel host's lease.
func junk(ip, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, ip, mac)
}

// corpus is the catalogue of hostile records (S1 to S7): n numbers them, so that none is in another's way. host1 and host2
// are real.
func corpus(n int) []hostile {
	var all []hostile
	next := func() int { n++; return n }
	at := func() string { return fmt.Sprintf("subnets/10.5.%d.0-24", next()) }
	ip := func() string { return fmt.Sprintf("198.51.100.%d", n) }
	mac := func() string { return fmt.Sprintf("02:00:00:00:01:%02x", n) }
	add := func(key, value, reason string) { all = append(all, hostile{key, value, reason}) }
	good := func() string { return junk(ip(), mac()) }
	for _, value := range []string{
		"", "junk", "[]", "7", "null", `"vxlan"`, "{}", `{"PublicIP":7}`, strings.Repeat(`{"BackendData":`, 270), "\xff\xfe{}",
		`{"X":"` + strings.Repeat("x", 5000) + `"}`, `{"X":"` + strings.Repeat("x", 1<<20) + `"}`,
		strings.Replace(good(), `"VNI":1`, `"VNI":7`, 1), strings.Replace(good(), "vxlan", "udp", 1),
	} {
		add(at(), value, "value")
	}
	for _, key := range []string{"10.5.%02d.0-24", "10.5.%d.7-24", "10.5.%d.0-33", "10.5.%d.0-24x", "10.5.%d.0-24&", "junk%d", "../10.5.%d.0-24", "::ffff:10.5.%d.0-120"} {
		name := fmt.Sprintf(key, next()%10)
		add("subnets/"+name, good(), "key")
	}
	add("subnetsX/10.5.250.0-24", good(), "")
	add("subnets", good(), "")
	for _, name := range []string{"0.0.0.0-0", "128.0.0.0-1", "192.0.2.0-24", "10.5.0.0-16", "10.0.0.0-8", "169.254.0.0-16", "224.0.0.0-24", "10.6.1.0-24", "192.0.2.1-32"} {
		next()
		add("subnets/"+name, good(), "outside")
	}
	for _, bad := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1", "10.5.77.1", "fd00::1", "192.0.2.7", "192.0.2.8", "x"} {
		add(at(), junk(bad, mac()), "public-ip")
	}
	for _, bad := range []string{"00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", subnet.VTEPMAC(1, "host1").String(), subnet.VTEPMAC(1, "host2").String()} {
		key := at()
		add(key, junk(ip(), bad), "mac")
	}
	for _, name := range []string{"host2", "bad name", strings.Repeat("n", 300)} {
		key := at()
		add(key, strings.TrimSuffix(good(), "}")+fmt.Sprintf(`,"Node":%q}`, name), "node")
	}
	return all
}

// counts is how many of the records are skipped for each reason.
func counts(all []hostile) map[string]int {
	by := map[string]int{}
	for _, h := range all {
		if h.reason != "" {
			by[h.reason]++
		}
	}
	return by
}

func write(t *testing.T, c *clientv3.Client, all []hostile) {
	t.Helper()
	for _, h := range all {
		if _, err := c.Put(t.Context(), below+h.key, h.value); err != nil {
			t.Fatal(h.key, err)
		}
	}
}

// skips waits until a daemon has skipped so many for each reason, in its metrics and in its status.
func skips(t *testing.T, h *lab.Host, want map[string]int) {
	t.Helper()
	must(t, lab.Within(3*lab.Patience, fmt.Sprintf("%s skips %v", h.ID, want), func() error {
		text, err := overSocket(h, "/metrics")
		if err != nil {
			return err
		}
		for reason, n := range want {
			if line := fmt.Sprintf("overlayd_leases_skipped{reason=%q} %d\n", reason, n); !strings.Contains(string(text), line) {
				return fmt.Errorf("want %s in\n%s", line, grep(string(text), "skipped"))
			}
		}
		return nil
	}))
}

func grep(text, word string) string {
	return strings.Join(slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool { return !strings.Contains(line, word) }), "")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// made is how many rows a daemon has changed so far.
func made(t *testing.T, h *lab.Host) int {
	t.Helper()
	text, err := overSocket(h, "/status")
	must(t, err)
	var r struct{ Kernel struct{ Made int } }
	must(t, json.Unmarshal(text, &r))
	return r.Kernel.Made
}

// twoHosts is a lab with etcd, a network and, not started yet, two hosts.
func twoHosts(t *testing.T, name string) (*lab.Lab, *clientv3.Client) {
	t.Helper()
	lab.Need(t)
	l, err := lab.New(name, t.TempDir(), lab.Binaries())
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Logs())
		}
		must(t, l.Close())
	})
	must(t, l.Etcd())
	for i := range 2 {
		_, err := l.Host(fmt.Sprintf("host%d", i+1), fmt.Sprintf("192.0.2.%d", i+7))
		must(t, err)
	}
	file := filepath.Join(t.TempDir(), "network.json")
	must(t, os.WriteFile(file, []byte(`{"Network": "10.5.0.0/16", "SubnetMin": "10.5.250.0", "SubnetMax": "10.5.255.0"}`), 0o600))
	_, err = l.Hosts()[0].Overlayd("config", "set", file)
	must(t, err)
	c, err := client(l)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return l, c
}

// TestHostileRecordsAreSkippedCountedAndNamed writes the catalogue before the hosts start and again while they run.
func TestHostileRecordsAreSkippedCountedAndNamed(t *testing.T) {
	t.Parallel()
	l, c := twoHosts(t, "hostile")
	one, two := l.Hosts()[0], l.Hosts()[1]
	real := slices.DeleteFunc(corpus(0), func(h hostile) bool { // before they join the real hosts have nothing to be copied
		return strings.Contains(h.value, `"192.0.2.7"`) || strings.Contains(h.value, `"192.0.2.8"`) || strings.Contains(h.value, `"host2"`) ||
			strings.Contains(h.value, subnet.VTEPMAC(1, "host1").String()) || strings.Contains(h.value, subnet.VTEPMAC(1, "host2").String())
	})
	write(t, c, real)
	must(t, one.Start())
	must(t, two.Start())
	must(t, one.Ready(1))
	must(t, two.Ready(1))
	skips(t, one, counts(real))
	skips(t, two, counts(real))
	pod1, err := one.Pod("hostile-pod1")
	must(t, err)
	pod2, err := two.Pod("hostile-pod2")
	must(t, err)
	flow, err := pod1.Traffic(pod2.Addrs[0])
	must(t, err)
	must(t, lab.Eventually("host1 has seen its pod", func() error { // the pod's own rows are made soon after it is attached
		text, err := one.Overlayd("status", "--json")
		if err == nil && !strings.Contains(text, `"pods": 1,`) {
			err = errors.New(text)
		}
		return err
	}))
	before := made(t, one)

	all := corpus(100)
	write(t, c, all)
	seen := map[string]bool{}
	want := counts(slices.DeleteFunc(append(real, all...), func(h hostile) bool { // the keys that cannot be numbered are the same
		again := seen[h.key]
		seen[h.key] = true
		return again
	}))
	skips(t, one, want)
	skips(t, two, want)
	if now := made(t, one); now != before {
		t.Errorf("%d rows were changed", now-before)
	}
	text, err := one.Overlayd("status")
	must(t, err)
	if !strings.Contains(text, "skipped") || !strings.Contains(text, "more (overlayd leases --json lists all)") {
		t.Errorf("status names nothing:\n%s", text)
	}
	text, err = one.Overlayd("leases", "--json")
	must(t, err)
	for _, h := range all {
		if name := strings.TrimPrefix(h.key, "subnets/"); h.reason != "" && !strings.Contains(text, strings.NewReplacer("&", `\u0026`).Replace(name)) && !strings.Contains(text, strings.Replace(name, "-", "/", 1)) {
			t.Errorf("%s is not named", h.key)
		}
	}
	rows, err := one.Output(nil, "ip", "route")
	must(t, err)
	if n := strings.Count(rows, "nhid"); n != 1 {
		t.Errorf("%d routes to peers, want one:\n%s", n, rows)
	}
	if sent, lost := flow.Stop(); sent == 0 || len(lost) > 0 {
		t.Errorf("of %d datagrams %d were lost", sent, len(lost))
	}
}

// TestAFloodOfJunk bounds what a stranger with 100,000 keys can take from a host that runs and from one that joins.
func TestAFloodOfJunk(t *testing.T) {
	t.Parallel()
	l, c := twoHosts(t, "flood")
	one, two := l.Hosts()[0], l.Hosts()[1]
	must(t, one.Start())
	must(t, one.Ready(0))
	const keys, each = 100_000, 128
	start := time.Now()
	for from := 0; from < keys; from += each {
		var ops []clientv3.Op
		for i := from; i < min(keys, from+each); i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%ssubnets/junk%d", below, i), "junk"))
		}
		_, err := c.Txn(t.Context()).Then(ops...).Commit()
		must(t, err)
	}
	t.Logf("written in %s", time.Since(start))
	skips(t, one, map[string]int{"key": keys})
	t.Logf("seen by the running host after %s: %.0f MiB resident", time.Since(start), resident(t, one))
	start = time.Now()
	must(t, two.Start())
	must(t, lab.Within(3*lab.Patience, "host2 joins", func() error { // on a busy machine that takes its time
		s, err := askOnce(two)
		if err == nil && (!s.Ready || s.Peers != 1) {
			err = fmt.Errorf("ready %t, %d peers", s.Ready, s.Peers)
		}
		return err
	}))
	t.Logf("joined in %s: %.0f MiB resident", time.Since(start), resident(t, two))
	must(t, one.Ready(1))
	const most = 256
	for _, h := range l.Hosts() {
		if mib := resident(t, h); mib > most {
			t.Errorf("%s takes %.0f MiB, more than %d", h.ID, mib, most)
		}
	}
}

func resident(t *testing.T, h *lab.Host) float64 {
	t.Helper()
	mib, err := residentMiB(h.Daemon().PID())
	must(t, err)
	return mib
}

// TestABusyKeyIsFewWrites: whoever rewrites a lease all the time does not keep the kernel of every host busy.
func TestABusyKeyIsFewWrites(t *testing.T) {
	t.Parallel()
	l, c := twoHosts(t, "busy")
	one := l.Hosts()[0]
	must(t, one.Start())
	must(t, one.Ready(0))
	put := func(n int) {
		_, err := c.Put(context.Background(), below+"subnets/10.5.9.0-24", junk("198.51.100.9", fmt.Sprintf("02:00:00:00:02:%02x", n%250)))
		must(t, err)
	}
	put(0)
	must(t, one.Ready(1))
	before, start := made(t, one), time.Now()
	const writes = 1000
	for n := range writes {
		put(n)
	}
	must(t, lab.Eventually("the last one stands", func() error {
		text, err := one.Output(nil, "bridge", "fdb", "show", "dev", "overlay.1")
		if !strings.Contains(text, fmt.Sprintf("02:00:00:00:02:%02x dst 198.51.100.9", (writes-1)%250)) {
			err = errors.Join(err, errors.New(text))
		}
		return err
	}))
	took := time.Since(start)
	const perPass = 3 // the old FDB entry, the new one, the neighbour
	passes := float64(made(t, one)-before) / perPass
	t.Logf("%d updates in %s: %.0f passes", writes, took, passes)
	if most := 50*took.Seconds() + 2; passes > most { // backend.DefaultPace: 20 ms between passes
		t.Errorf("%.0f passes in %s, more than fifty a second", passes, took)
	}
}
