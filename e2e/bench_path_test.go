package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/nftables"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/e2e/lab"
)

// way is how packets get from one namespace to another on the other host.
type way struct {
	name     string
	from, to *lab.Netns
	at       netip.Addr
}

// Names of the ways.
const (
	wayHosts   = "hosts"    // on the underlay, with no overlayd near: what all others are compared with
	wayVXLAN   = "vxlan"    // pod to pod
	wayDirect  = "direct"   // pod to pod by plain routes
	wayLoose   = "loose"    // as vxlan, with --untracked
	wayUnruled = "unruled"  // as vxlan, without any table of ours
	rulesCost  = "rules-at" // vxlan compared with unruled: the share that rules leave
)

// The networks.
const (
	vxlanNetwork  = `{"Network": "10.5.0.0/16"}`
	directNetwork = `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`
)

// rounds of the data path bench, and how long one measure takes in each.
const (
	rounds   = 31
	oneRound = 100 * time.Millisecond
)

// BenchmarkDataPath measures throughput, round trips, new connections and processor time a byte on each way, one way after
// the other in every round, and prints medians and their ratios to host to host in the same round.
func BenchmarkDataPath(b *testing.B) {
	lab.Need(b)
	if _, err := exec.LookPath("iperf3"); err != nil {
		b.Fatal("iperf3 is missing: e2e/tools.sh bench installs it")
	}
	vxlan, _ := podsWay(b, wayVXLAN, vxlanNetwork)
	direct, _ := podsWay(b, wayDirect, directNetwork)
	loose, _ := podsWay(b, wayLoose, vxlanNetwork, "--untracked")
	ways := []way{hostsWay(b), vxlan, direct, loose, unruledWay(b)}
	for _, w := range ways {
		serve(b, w)
	}
	for range b.N {
		results := map[string]map[string][]float64{} // measure -> way -> a value a round
		for round := range rounds {
			for _, m := range measures() {
				for i := range ways {
					w := ways[(round+i)%len(ways)] // nobody is always the first
					values, err := m.measure(w)
					check(b, err)
					for i, name := range m.names {
						if results[name] == nil {
							results[name] = map[string][]float64{}
						}
						results[name][w.name] = append(results[name][w.name], values[i])
					}
				}
			}
		}
		reportWays(b, results)
	}
}

// reportWays prints medians in a table, and reports the ratios.
func reportWays(b *testing.B, results map[string]map[string][]float64) {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "\t%s\t%s\t%s\t%s\t%s\tvxlan/hosts\tdirect/hosts\tvxlan/unruled\tloose/unruled\t\n", wayHosts, wayVXLAN, wayDirect, wayLoose, wayUnruled)
	for _, name := range names() {
		r := results[name]
		vxlan, direct, rules := ratio(r[wayVXLAN], r[wayHosts]), ratio(r[wayDirect], r[wayHosts]), ratio(r[wayVXLAN], r[wayUnruled])
		loose := ratio(r[wayLoose], r[wayUnruled])
		fmt.Fprintf(table, "%s\t%.4g\t%.4g\t%.4g\t%.4g\t%.4g\t%.2f\t%.2f\t%.2f\t%.2f\t\n", name,
			median(r[wayHosts]), median(r[wayVXLAN]), median(r[wayDirect]), median(r[wayLoose]), median(r[wayUnruled]), vxlan, direct, rules, loose)
		b.ReportMetric(vxlan, wayVXLAN+"/"+name)
		b.ReportMetric(direct, wayDirect+"/"+name)
		b.ReportMetric(rules, rulesCost+"/"+name)
	}
	check(b, table.Flush())
	b.ReportMetric(0, "ns/op")
	fmt.Fprintf(os.Stdout, "\n%s\n", text.String()) // a benchmark's log is not shown unless asked for
}

// ratio is the median of the rounds' ratios: what disturbs a round disturbs both.
func ratio(a, b []float64) float64 {
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return median(all)
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// bareHosts is a lab with two hosts.
func bareHosts(b *testing.B, name string) (l *lab.Lab, h1, h2 *lab.Host) {
	l, err := lab.New(name, b.TempDir(), lab.Binaries())
	check(b, err)
	b.Cleanup(func() { check(b, l.Close()) })
	h1, err = l.Host("host1", "192.0.2.7")
	check(b, err)
	h2, err = l.Host("host2", "192.0.2.8")
	check(b, err)
	return l, h1, h2
}

func hostsWay(b *testing.B) way {
	_, h1, h2 := bareHosts(b, wayHosts)
	return way{wayHosts, h1.Netns, h2.Netns, netip.MustParseAddr(h2.Addr)}
}

// podsWay is from a pod to another through two hosts with daemons.
func podsWay(b *testing.B, name, config string, flags ...string) (way, *lab.Lab) {
	l, h1, h2 := bareHosts(b, name)
	check(b, l.Etcd())
	file := filepath.Join(b.TempDir(), "network.json")
	check(b, os.WriteFile(file, []byte(config), 0o600))
	_, err := h1.Overlayd("config", "set", file)
	check(b, err)
	check(b, h1.Start(flags...))
	check(b, h2.Start(flags...))
	check(b, h1.Ready(1))
	check(b, h2.Ready(1))
	from, err := h1.Pod("pod1")
	check(b, err)
	to, err := h2.Pod("pod2")
	check(b, err)
	return way{name, from.Netns, to.Netns, to.Addrs[0]}, l
}

// unruledWay is VXLAN between hosts that have no table of ours any more: their daemons have ended and put none back.
func unruledWay(b *testing.B) way {
	w, l := podsWay(b, wayUnruled, vxlanNetwork)
	for _, h := range l.Hosts() {
		check(b, h.Stop())
		check(b, h.Do(removeTables))
	}
	return w
}

// removeTables takes our tables out of the current namespace.
func removeTables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	for _, t := range tables {
		if t.Name == backend.TableName {
			c.DelTable(t)
		}
	}
	return errors.Join(err, c.Flush())
}
