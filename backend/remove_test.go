package backend_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
)

// installed is a kernel that holds the plan of three hosts.
func installed(t *testing.T) *backendtest.Fake {
	t.Helper()
	k := backendtest.NewFake(host())
	k.Plant(backend.Plan(host(), three(t)).Entries()...)
	return k
}

const knobs = `net/ipv4/conf/eth0/forwarding = 1
net/ipv4/conf/overlay.1/accept_redirects = 0
net/ipv4/conf/overlay.1/forwarding = 1
net/ipv4/conf/overlay.1/rp_filter = 2
net/ipv4/conf/ovl0/accept_redirects = 0
net/ipv4/conf/ovl0/forwarding = 1
net/ipv4/ip_forward = 1
net/ipv6/conf/overlay.1/disable_ipv6 = 1
net/ipv6/conf/ovl0/disable_ipv6 = 1
`

func TestRemoveLeavesNothingButKnobs(t *testing.T) {
	k := installed(t)
	want := diffText(backend.Diff(backend.State{}, k.State()))
	made, err := backend.Remove(k)
	if err != nil {
		t.Fatal(err)
	}
	checkText(t, diffText(made), want)
	checkText(t, k.State().String(), knobs)

	made, err = backend.Remove(k)
	if err != nil {
		t.Fatal(err)
	}
	checkText(t, diffText(made), "")
}

func TestRemoveNamesWhatIsLeftAndReturnsWhatIsGone(t *testing.T) {
	k := installed(t)
	const left = "unreachable 10.5.0.0/16 proto overlayd metric 4294967295"
	for _, row := range k.State() {
		if row.String() == left {
			k.Refuse(row, errRefused)
		}
	}
	want := strings.Replace(diffText(backend.Diff(backend.State{}, k.State())), "- "+left+"\n", "", 1)
	made, err := backend.Remove(k)
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), left) {
		t.Errorf("\n got %v\nwant %s and %v in it", err, left, errRefused)
	}
	checkText(t, diffText(made), want)
	checkText(t, k.State().String(), knobs+left+"\n")
}

func TestRemoveTouchesNothingWhenItCannotRead(t *testing.T) {
	k := installed(t)
	k.Down(errRefused)
	made, err := backend.Remove(k)
	if !errors.Is(err, errRefused) {
		t.Errorf("got %v, want %v", err, errRefused)
	}
	checkText(t, diffText(made), "")
	checkText(t, k.State().String(), backend.Plan(host(), three(t)).String())
}

// haunted is a kernel in which a daemon still runs.
type haunted struct {
	*backendtest.Fake
	row backend.Entry
}

func (h haunted) Apply(changes []backend.Change) []error {
	errs := h.Fake.Apply(changes)
	h.Plant(h.row)
	return errs
}

func TestRemoveGivesUpOnRowsThatComeBack(t *testing.T) {
	k := haunted{Fake: installed(t), row: route8(t)}
	_, err := backend.Remove(k)
	if err == nil || !strings.Contains(err.Error(), "is a daemon still running?") || !strings.Contains(err.Error(), k.row.String()) {
		t.Errorf("\n got %v\nwant the row %s and the question for a daemon", err, k.row)
	}
}
