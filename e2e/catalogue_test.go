package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/e2e/lab"
)

// TestCatalogue does to a host, while pods talk, what admins, scripts and other daemons do, and measures how long that
// lasts. Each act must be undone within a second, with nothing else touched.
func TestCatalogue(t *testing.T) {
	lab.Need(t)
	s := newScene(t, "cat")
	outcomes := s.play(acts())
	t.Logf("what was done, and how it was undone:\n%s", table(outcomes))
	slow := 0
	for _, o := range outcomes {
		if o.took > second {
			slow++
		}
		for _, e := range o.wrong {
			t.Errorf("%s: %v", o.act.name, e)
		}
	}
	if slow > 1 {
		t.Errorf("%d of %d acts took more than %s to be undone", slow, len(outcomes), second)
	}
	if len(outcomes) < fewest {
		t.Errorf("only %d acts", len(outcomes))
	}
	if t.Failed() {
		t.Log(s.lab.Logs())
	}
}

// BenchmarkCatalogue prints the table of [TestCatalogue].
func BenchmarkCatalogue(b *testing.B) {
	lab.Need(b)
	for i := range b.N {
		outcomes := newScene(b, fmt.Sprintf("catb%d", i)).play(acts())
		fmt.Printf("%s\n", table(outcomes)) // a log of a benchmark is cut off
		var took []time.Duration
		for _, o := range outcomes {
			took = append(took, o.took)
			for _, e := range o.wrong {
				b.Errorf("%s: %v", o.act.name, e)
			}
		}
		slices.Sort(took)
		b.ReportMetric(ms(took[len(took)/2]), "ms/repair-p50")
		b.ReportMetric(ms(took[len(took)*99/100]), "ms/repair-p99")
		b.ReportMetric(0, "ns/op")
	}
}

const (
	second = time.Second // in which an act must be undone
	fewest = 40          // acts in the catalogue
)

// outcome is what became of an act.
type outcome struct {
	act     act
	took    time.Duration  // from the act until all rows were right again
	lost    [2]int         // datagrams, to the other host and from there
	made    int            // rows that the daemon made, altered or removed
	repairs map[string]int // those that it calls repairs, by kind
	wrong   []error

	number int   // of the mark in the monitors' output
	sent   []int // datagrams of each flow before the act
}

func table(outcomes []outcome) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ACT\tREPAIRED ms\tLOST to\tfrom\tROWS\tREPAIRS")
	for _, o := range outcomes {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", o.act.name, o.took.Milliseconds(), o.lost[0], o.lost[1], o.made, kinds(o.repairs))
	}
	_ = w.Flush() // to a builder
	return b.String()
}

func kinds(repairs map[string]int) string {
	var all []string
	for kind, n := range repairs {
		all = append(all, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// scene is two hosts with pods that talk to each other, and everything that watches them. The acts happen on host1.
type scene struct {
	t        testing.TB
	lab      *lab.Lab
	host     *lab.Host
	other    *lab.Host
	pods     []*lab.Pod
	flows    []*lab.Flow // to the other host and from there, by IPv4; the same by IPv6
	monitors []*lab.Process
	kernel   *kernel.Kernel // of host1
	words    *strings.Replacer
	planted  string // what of other people's is on host1
	marks    int
}

const catalogueNetwork = `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.34.0", "SubnetMax": "10.5.35.0",
	"EnableIPv6": true, "IPv6Network": "fd00:5::/48"}`

func newScene(t testing.TB, name string) *scene {
	l, err := lab.New(name, t.TempDir(), lab.Binaries())
	need(t, err)
	s := &scene{t: t, lab: l}
	t.Cleanup(func() { need(t, l.Close()) })
	need(t, l.Etcd())
	s.host = s.addHost("host1", "192.0.2.7")
	configure(t, s.host, catalogueNetwork)
	need(t, s.host.Start())
	need(t, s.host.Ready(0))
	s.other = s.addHost("host2", "192.0.2.8")
	need(t, s.other.Start())
	need(t, s.other.Ready(1))
	need(t, s.host.Ready(1))
	for i, h := range []*lab.Host{s.host, s.host, s.other} {
		p, err := h.Pod(fmt.Sprintf("pod%d", i+1))
		need(t, err)
		s.pods = append(s.pods, p)
	}
	need(t, listed(s.host, 2))
	s.openKernel()
	s.words = s.names()
	s.plant()
	for _, family := range []int{0, 1} {
		for _, way := range [][2]*lab.Pod{{s.pods[0], s.pods[2]}, {s.pods[2], s.pods[0]}} {
			f, err := way[0].Traffic(way[1].Addrs[family])
			need(t, err)
			s.flows = append(s.flows, f)
		}
	}
	s.monitor("ip.log", "ip", "-o", "monitor", "link", "address", "route", "nexthop", "neigh")
	s.monitor("nft.log", "nft", "monitor")
	need(t, s.flowing())
	return s
}

func need(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *scene) addHost(name, addr string) *lab.Host {
	h, err := s.lab.Host(name, addr)
	need(s.t, err)
	return h
}

func configure(t testing.TB, h *lab.Host, network string) {
	file := h.Path("network.json")
	need(t, os.WriteFile(file, []byte(network), 0o600))
	_, err := h.Overlayd("config", "set", file)
	need(t, err)
}

func (s *scene) openKernel() {
	need(s.t, s.host.Do(func() (err error) {
		s.kernel, err = kernel.Open(kernel.Options{
			Node: "host1", VXLAN: "overlay.1", Bridge: "ovl0", Choice: backend.Choice{Ifaces: []string{"eth0"}}, Masquerade: true, AntiSpoof: true,
		})
		return err
	}))
	s.t.Cleanup(func() { s.kernel.Close() })
}

func (s *scene) monitor(log string, command ...string) {
	p, err := s.host.Begin(s.host.Path(log), command[0], command[1:]...)
	need(s.t, err)
	s.monitors = append(s.monitors, p)
	s.t.Cleanup(func() { need(s.t, p.End(9)) })
}

// names are the words in curly brackets of which acts make use.
func (s *scene) names() *strings.Replacer {
	plan, err := overSocket(s.host, "/plan")
	need(s.t, err)
	find := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindSubmatch(plan)
		if m == nil {
			s.t.Fatalf("the plan has no %s:\n%s", pattern, plan)
		}
		return string(m[1])
	}
	shown, err := s.host.Output(nil, "ip", "-o", "link", "show", s.pods[0].Addrs[0].String()) // its alternative name
	need(s.t, err)
	link := regexp.MustCompile(`: (\S+?)[@:]`).FindStringSubmatch(shown)
	if link == nil {
		s.t.Fatalf("no link in %s", shown)
	}
	return strings.NewReplacer(
		"{port}", link[1], "{pod}", s.pods[0].Addrs[0].String(), "{pod6}", s.pods[0].Addrs[1].String(),
		"{mac}", find(`overlay\.1: .* lladdr (\S+)`), "{bridgemac}", find(`ovl0: .* lladdr (\S+)`), "{peermac}", find(`(\S+) dev overlay\.1 dst`),
		"{hop}", find(`nexthop id (\d+) via 10\.`), "{hop6}", find(`nexthop id (\d+) via fd`),
		"{own6}", find(`inet6 (\S+)/128 dev overlay\.1`), "{gateway6}", find(`inet6 (\S+/64) dev ovl0`),
		"{vtep6}", find(`nexthop id \d+ via (fd\S+)`), "{net6}", find(`(fd\S+) nhid`),
		"{dir}", s.host.Dir,
	)
}

// shell runs a script on host1.
func (s *scene) shell(script string) (string, error) {
	return s.host.Output(nil, "sh", "-ec", s.words.Replace(script))
}

// daemon is what host1's daemon says of itself.
type daemon struct {
	Ready   bool
	Repairs map[string]int
	Kernel  struct {
		Synced bool
		Passes int
		Made   int
		Error  string
		Faults []struct{ Change, Why string }
	}
}

func (s *scene) daemon() (d daemon, err error) {
	text, err := overSocket(s.host, "/status")
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if d.Repairs == nil {
		d.Repairs = map[string]int{}
	}
	return d, err
}

// counted are the repairs as Prometheus is told.
func (s *scene) counted() (map[string]int, error) {
	text, err := overSocket(s.host, "/metrics")
	all := map[string]int{}
	for _, m := range regexp.MustCompile(`overlayd_repairs_total\{kind="(\w+)"\} (\d+)`).FindAllSubmatch(text, -1) {
		all[string(m[1])], err = strconv.Atoi(string(m[2]))
	}
	return all, err
}

// same compares the rows of the plan with the rows that are in the kernel.
func (s *scene) same() error {
	plan, err := overSocket(s.host, "/plan")
	if err != nil {
		return err
	}
	var have string
	err = s.host.Do(func() error {
		_, state, err := s.kernel.Read()
		have = state.String()
		return err
	})
	if err != nil {
		return err
	}
	rows := map[string]bool{}
	for row := range strings.Lines(have) {
		rows[row] = true
	}
	var errs []error
	for row := range strings.Lines(string(plan)) {
		if !rows[row] {
			errs = append(errs, fmt.Errorf("the kernel lacks %s", strings.TrimSpace(row)))
		}
		delete(rows, row)
	}
	for row := range rows {
		if !strings.HasPrefix(row, "net/") { // a knob that no plan wants
			errs = append(errs, fmt.Errorf("the kernel has %s", strings.TrimSpace(row)))
		}
	}
	return errors.Join(errs...)
}
