package etcd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// plot is a kind of history: what may happen in it, and how often as said here.
type plot struct {
	name   string
	who    []string
	verbs  []string // of hosts
	events []string // of all
	settle time.Duration
}

var (
	daily  = []string{"join", "join", "join", "beat", "beat", "regain", "regain", "rejoin", "renew", "live", "probe", "crash", "reboot", "drain"}
	absent = []string{"wait 25s", "wait 70s", "wait 200s", "run 25s", "run 50s", "run 100s", "run 200s"}
	plots  = []plot{
		{
			name: "faults", who: bill[:4], events: slices.Concat(absent, []string{"deliver", "flannel 5", "flannel 2", "config narrow"}),
			verbs: slices.Concat(daily, []string{"wipedisk", "release", "cut", "deaf", "heal", "heal", "jump 30s", "jump -30s", "reserve 1", "reserve 4", "unreserve"}),
		},
		{
			name: "twins and rivals", who: []string{"a", "twin", "b", "rival", "c"}, events: slices.Concat(absent, []string{"wait 70s", "deliver"}),
			verbs: slices.Concat(daily, []string{"move 1", "move 2", "move 7", "move 8", "release", "cut", "heal"}),
		},
		{
			name: "wipes and restores", who: bill[:4], settle: AliveTTL,
			events: slices.Concat(absent, []string{"deliver", "save", "save", "wipe", "restore", "restore", "config narrow"}),
			verbs:  slices.Concat(daily, []string{"wipedisk", "release", "reserve 2", "cut", "heal"}),
		},
		{
			name: "configurations", who: []string{"a", "b", "c", "rival"},
			events: slices.Concat(absent, []string{"deliver", "config wide", "config narrow", "config moved", "config coarse", "config vni", "config dual"}),
			verbs:  slices.Concat(daily, []string{"wipedisk", "release", "reserve 2", "cut", "heal"}),
		},
	}
	contests = []string{"join", "join", "join", "regain", "rejoin", "release", "reserve 3", "unreserve"}
	kinds    = []string{"write 1", "write 1", "write 1", "write 1", "read 1", "range 1", "range 2", "range 3", "range 4", "grant 1", "grant 2", "revoke 1", "revoke 2", "revoke 3", "renew 1", "renew 2"}
	ways     = []string{lost, unanswered, unanswered, twice, echoed, late, dies, meanwhile, meanwhile}
)

// history draws a list of steps, as text.
func (p plot) history() *rapid.Generator[[]string] {
	plain := rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 4).Draw(t, "who") == 0 {
			return rapid.SampledFrom(p.events).Draw(t, "event")
		}
		return rapid.SampledFrom(p.who).Draw(t, "host") + " " + rapid.SampledFrom(p.verbs).Draw(t, "verb")
	})
	contender := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom(p.who).Draw(t, "host") + " " + rapid.SampledFrom(contests).Draw(t, "contest")
	})
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 5).Draw(t, "race") == 0 {
			return contender.Draw(t, "step") + " / write 1 meanwhile " + strings.Join(rapid.SliceOfN(contender, 1, 2).Draw(t, "others"), ", ")
		}
		line := plain.Draw(t, "step")
		for range rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2}).Draw(t, "faults") {
			if _, ok := cast[strings.Fields(line)[0]]; !ok {
				break
			}
			way := rapid.SampledFrom(ways).Draw(t, "way")
			line += " / " + rapid.SampledFrom(kinds).Draw(t, "request") + " " + way
			if way == meanwhile {
				line += " " + strings.Join(rapid.SliceOfN(plain, 1, 3).Draw(t, "others"), ", ")
			}
		}
		return line
	}), 1, 40)
}

// TestWhateverHappensTheInvariantsHold plays random histories on the model of etcd. The invariants are the
// catalogue's I1 to I6 and I12 as far as the store and its daemons go: see [world.observe] and [world.believe]. A history that failed is
// written down as one of the cases.
func TestWhateverHappensTheInvariantsHold(t *testing.T) {
	t.Parallel()
	for _, p := range plots {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(r *rapid.T) {
				history := p.history().Draw(r, "history")
				newWorld(r, modelArena(t), p.settle).run(history)
			})
		})
	}
}
