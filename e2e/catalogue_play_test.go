package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/e2e/lab"
)

// act is something that somebody does on host1. Scripts are for sh; words in curly brackets are [scene.names].
type act struct {
	name string
	do   string             // script
	hand func(*scene) error // instead of a script
	calm bool               // the daemon stands still meanwhile: else it would be in the middle of the act

	see    string // script that shows the row in question: ip, bridge, nft and sysctl, not overlayd
	want   string // how it must look in the end: a regular expression
	kind   string // of the row, counted as a repair; "" when what is wanted has changed, or nothing is damaged
	mended string // in a line of the log that begins with "mended:"; the kind's acts have it
	gone   string // rows that the act takes along: a regular expression for what monitors may tell of deletions

	// Something foreign is in the way or beside ours, and stays until it is taken away.
	stays string // how what is seen must look meanwhile
	named string // what overlayd status says meanwhile
	fault bool   // and is not ready meanwhile
	undo  string // script that takes it away; {remedy} is the command that status names
}

// play performs all acts, one after the other, and judges them.
func (s *scene) play(acts []act) []outcome {
	var outcomes []outcome
	for _, a := range acts {
		o := s.perform(a)
		if o.took > second || len(o.wrong) > 0 { // a busy machine: one more chance
			s.t.Logf("%s: %s, %v: once more", a.name, o.took, o.wrong)
			o = s.perform(a)
		}
		outcomes = append(outcomes, o)
		if o.took == 0 { // never undone: what follows would only say so again
			break
		}
	}
	s.countLost(outcomes)
	s.mark()
	s.hearMonitors(outcomes)
	return outcomes
}

func (s *scene) perform(a act) outcome {
	o := outcome{act: a, number: s.mark(), repairs: map[string]int{}}
	fail := func(err error) outcome {
		o.wrong = append(o.wrong, err)
		return o
	}
	for _, f := range s.flows {
		sent, _ := f.Counts()
		o.sent = append(o.sent, sent)
	}
	before, err := s.daemon()
	if err != nil {
		return fail(err)
	}
	log := len(s.host.Daemon().Log())
	start := time.Now()
	if err := s.begin(a); err != nil {
		return fail(err)
	}
	if a.undo != "" {
		if err := s.meanwhile(a); err != nil {
			o.wrong = append(o.wrong, err)
		}
		start = time.Now()
		if err := s.takeAway(a); err != nil {
			return fail(err)
		}
	}
	if err := until(func() error { return s.right(a, before) }); err != nil {
		return fail(err)
	}
	o.took = time.Since(start)
	if err := s.flowing(); err != nil {
		return fail(err)
	}
	if err := unlike(s.planted, s.foreign()); err != nil {
		o.wrong = append(o.wrong, fmt.Errorf("what is not ours has changed: %w", err))
	}
	s.judge(&o, before, log)
	return o
}

func (s *scene) begin(a act) error {
	if a.hand != nil {
		return a.hand(s)
	}
	if !a.calm {
		_, err := s.shell(a.do)
		return err
	}
	daemon := s.host.Daemon()
	if err := daemon.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	_, err := s.shell(a.do)
	return errors.Join(err, daemon.Signal(unix.SIGCONT))
}

// meanwhile looks at what must stay, and at what is said of it.
func (s *scene) meanwhile(a act) error {
	return until(func() error {
		var errs []error
		if a.stays != "" {
			if text, err := s.shell(a.see); err != nil || !s.matches(a.stays, text) {
				errs = append(errs, fmt.Errorf("want %s, have\n%s", a.stays, text), err)
			}
		}
		text, _ := s.host.Overlayd("status") // fails when it is not ready
		if !s.matches(a.named, text) {
			errs = append(errs, fmt.Errorf("status does not name %s:\n%s", a.named, text))
		}
		if ready, err := isReady(s.host); err != nil || ready == a.fault {
			errs = append(errs, fmt.Errorf("ready: %v, %w", ready, err))
		}
		return errors.Join(errs...)
	})
}

// isReady asks for /readyz.
func isReady(h *lab.Host) (bool, error) {
	text, err := overSocket(h, "/readyz")
	return strings.Contains(string(text), `"ready": true`), err
}

func (s *scene) takeAway(a act) error {
	script := a.undo
	if strings.Contains(script, "{remedy}") {
		text, _ := s.host.Overlayd("status")
		m := regexp.MustCompile(`to open it: (.*)`).FindStringSubmatch(text)
		if m == nil {
			return fmt.Errorf("status says nothing that can be done:\n%s", text)
		}
		script = strings.ReplaceAll(script, "{remedy}", m[1])
	}
	_, err := s.shell(script)
	return err
}

// right says whether the row in question looks as it should, all rows are there, and the daemon knows it and has told.
func (s *scene) right(a act, before daemon) error {
	if text, err := s.shell(a.see); err != nil || !s.matches(a.want, text) {
		return errors.Join(fmt.Errorf("want %s, have\n%s", a.want, text), err)
	}
	if err := s.same(); err != nil {
		return err
	}
	now, err := s.daemon()
	switch {
	case err != nil:
		return err
	case !now.Ready || !now.Kernel.Synced || a.kind != "" && now.Kernel.Passes == before.Kernel.Passes:
		return fmt.Errorf("the daemon is not content: %+v", now)
	case a.kind != "" && now.Repairs[a.kind] == before.Repairs[a.kind]:
		return fmt.Errorf("no repair of kind %s is counted: %v", a.kind, now.Repairs)
	}
	return nil
}

// judge compares what the daemon says of an act with what it did.
func (s *scene) judge(o *outcome, before daemon, log int) {
	after, err := s.daemon()
	counted, errMetrics := s.counted()
	if err := errors.Join(err, errMetrics); err != nil {
		o.wrong = append(o.wrong, err)
		return
	}
	o.made = after.Kernel.Made - before.Kernel.Made
	for kind, n := range counted {
		if n -= before.Repairs[kind]; n != 0 {
			o.repairs[kind] = n
		}
	}
	if !maps.Equal(nonzero(counted), after.Repairs) {
		o.wrong = append(o.wrong, fmt.Errorf("metrics count the repairs %v, status %v", counted, after.Repairs))
	}
	told := map[string]int{}
	for line := range strings.Lines(s.host.Daemon().Log()[log:]) {
		if _, what, ok := strings.Cut(line, "mended: "); ok {
			told[strings.TrimSpace(what)]++
		}
	}
	found := o.act.mended == ""
	for what, n := range told {
		found = found || s.matches(o.act.mended, what)
		if n > 1 {
			o.wrong = append(o.wrong, fmt.Errorf("the log has %d times: mended: %s", n, what))
		}
	}
	if !found {
		o.wrong = append(o.wrong, fmt.Errorf("the log does not tell that %s was mended: %v", o.act.mended, told))
	}
	if o.act.kind == "" && o.act.mended == "" && len(told) > 0 && !o.act.follows() {
		o.wrong = append(o.wrong, fmt.Errorf("nothing was damaged, and the log tells of %v", told))
	}
}

// follows says whether an act changes what is wanted, of which the log may tell in any words.
func (a act) follows() bool { return a.hand != nil || a.gone != "" }

func nonzero(m map[string]int) map[string]int {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(_ string, n int) bool { return n == 0 })
	return m
}

func (s *scene) matches(pattern, text string) bool {
	return regexp.MustCompile("(?m)" + s.words.Replace(pattern)).MatchString(text)
}

// countLost stops the flows and says which act lost what.
func (s *scene) countLost(outcomes []outcome) {
	for i, f := range s.flows {
		_, lost := f.Stop()
		for _, number := range lost {
			for n := len(outcomes) - 1; n >= 0; n-- {
				if o := &outcomes[n]; len(o.sent) > i && number >= o.sent[i] {
					o.lost[i%2]++
					break
				}
			}
		}
	}
}

// mark makes the monitors tell where the next act begins.
func (s *scene) mark() int {
	s.marks++
	_, err := s.shell(fmt.Sprintf("ip route add blackhole 192.88.77.%d table 99; nft add table ip mark%d", s.marks, s.marks))
	need(s.t, err)
	return s.marks
}

// hearMonitors looks at the deletions that the monitors told of, act by act.
func (s *scene) hearMonitors(outcomes []outcome) {
	ip := s.chapters("ip.log", `192\.88\.77\.(\d+) table 99`)
	nft := s.chapters("nft.log", `add table ip mark(\d+)`)
	ours := regexp.MustCompile(`Deleted.*(proto (142|overlayd)|PERMANENT)|Deleted \d+: (overlay\.1|ovl0)|Deleted.* inet6? (10\.5|fd00:5)`)
	for i := range outcomes {
		o := &outcomes[i]
		for line := range strings.Lines(ip[o.number]) {
			if ours.MatchString(line) && (o.act.gone == "" || !s.matches(o.act.gone, line)) {
				o.wrong = append(o.wrong, fmt.Errorf("deleted: %s", strings.TrimSpace(line)))
			}
		}
		for _, line := range byDaemon(nft[o.number]) {
			if o.act.gone == "" || !s.matches(o.act.gone, line) {
				o.wrong = append(o.wrong, fmt.Errorf("the daemon deletes: %s", line))
			}
		}
	}
}

// chapters cuts a monitor's output at its marks, once it tells of the last one.
func (s *scene) chapters(log, mark string) map[int]string {
	re := regexp.MustCompile(mark)
	var text string
	need(s.t, lab.Eventually("the monitor tells of the last act", func() error {
		b, err := os.ReadFile(s.host.Path(log))
		text = string(b)
		if all := re.FindAllStringSubmatch(text, -1); len(all) < s.marks {
			return fmt.Errorf("%d marks of %d in %s", len(all), s.marks, log)
		}
		return err
	}))
	all := map[int]string{}
	at := re.FindAllStringSubmatchIndex(text, -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		var number int
		_, _ = fmt.Sscan(text[m[2]:m[3]], &number)
		all[number] = text[m[1]:end]
	}
	return all
}

// byDaemon returns the deletions in the transactions that nft monitor says are overlayd's.
func byDaemon(text string) []string {
	var all, part []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "# new generation"):
			if strings.HasSuffix(line, "(overlayd)") {
				all = append(all, part...)
			}
			part = nil
		case strings.HasPrefix(line, "delete "):
			part = append(part, line)
		}
	}
	return all
}

// flowing waits until each flow has had some more answers.
func (s *scene) flowing() error {
	const some = 3
	before := make([]int, len(s.flows))
	for i, f := range s.flows {
		_, before[i] = f.Counts()
	}
	return until(func() error {
		for i, f := range s.flows {
			if _, now := f.Counts(); now < before[i]+some {
				return fmt.Errorf("traffic %d: %d answers", i, now-before[i])
			}
		}
		return nil
	})
}

// until waits as [lab.Eventually] does and looks more often, to measure.
func until(f func() error) error {
	const step = 3 * time.Millisecond
	deadline := time.Now().Add(lab.Patience)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s: %w", lab.Patience, err)
		}
		time.Sleep(step) //nolint:forbidigo // a wait for a condition with a deadline
	}
}
