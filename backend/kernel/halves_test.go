package kernel_test

import (
	"os/exec"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
)

// half is a link as the plugin makes it, with a MAC that says the same as its name, before it commits.
const half, halfMAC = "veth3c9a71be0d4", "0e:3c:9a:71:be:0d"

// plantHalf begins an attachment and does not end it.
func plantHalf(t *testing.T, args string) {
	t.Helper()
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", half).Run() }) // where the test has not
	ip(t, "link add "+half+" address "+halfMAC+" type veth peer name half-peer")
	if args != "" {
		ip(t, "link set "+half+" "+args)
	}
}

// halves are the links of attachments that a read takes for ended.
func halves(t *testing.T, k backend.Kernel) []string {
	t.Helper()
	_, have, err := k.Read()
	must(t, err)
	var all []string
	for _, e := range have.Entries() {
		if h, ok := e.(backend.Half); ok {
			all = append(all, h.Link)
		}
	}
	return all
}

// TestAHalfADDIsReapedAfterAMinute, and not before: the plugin may be at it still.
func TestAHalfADDIsReapedAfterAMinute(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	synctest.Test(t, func(t *testing.T) {
		plantHalf(t, "master ovl0 up")
		pass(t, k, network) // the first that sees it
		later(59 * time.Second)
		if got := halves(t, k); got != nil {
			t.Fatalf("after 59 s %q are taken for ended", got)
		}
		later(time.Second)
		made := pass(t, k, network)
		if want := "- " + half + " of an attachment that did not end\n"; lines(made) != want {
			t.Errorf("after 60 s (-want +got):\n-%s+%s", want, lines(made))
		}
		if text, err := exec.Command("ip", "link", "show", half).CombinedOutput(); err == nil {
			t.Errorf("it is there:\n%s", text)
		}
	})
}

// TestAnUninstallReapsHalfADDsAtOnce: nobody looks again later.
func TestAnUninstallReapsHalfADDsAtOnce(t *testing.T) {
	pass(t, open(t), backendtest.Network(t))
	plantHalf(t, "master ovl0")
	k := openWith(t, with(func(o *kernel.Options) { o.NoUplink = true }))
	if got := halves(t, k); !slices.Equal(got, []string{half}) {
		t.Errorf("%q are taken for ended, want %s", got, half)
	}
}

// TestOnlyAHalfADDIsReaped: nothing else, however old, and however much its name is like one.
func TestOnlyAHalfADDIsReaped(t *testing.T) {
	for _, c := range []struct{ claim, then string }{
		{"it has committed", "alias overlay/c1/eth0"},
		{"it has another's alias", "alias something"},
		{"it has another MAC", "address 0e:3c:9a:71:be:0e"},
		{"it has a MAC of another kind", "address 02:3c:9a:71:be:0d"},
		{"it has another name", "name veth3c9a71be1d4"},
		{"it has a longer alias and is up", "alias overlay/c1/eth0/ns/pod up"},
		{"it is on another bridge", "master other"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			k, network := open(t), backendtest.Network(t)
			pass(t, k, network)
			ip(t, "link add other type bridge")
			t.Cleanup(func() {
				ip(t, "link del other")
				_ = exec.Command("ip", "link", "del", "half-peer").Run()
			})
			synctest.Test(t, func(t *testing.T) {
				plantHalf(t, "")
				ip(t, "link set "+half+" "+c.then)
				halves(t, k)
				later(time.Hour)
				if got := halves(t, k); got != nil {
					t.Errorf("%q are taken for ended", got)
				}
			})
		})
	}
}

// TestAnADDThatTakesItsTimeIsLeftAlone: a link that commits late, and another attachment that reuses the name.
func TestAnADDThatTakesItsTimeIsLeftAlone(t *testing.T) {
	k, network := open(t), backendtest.Network(t)
	pass(t, k, network)
	synctest.Test(t, func(t *testing.T) {
		plantHalf(t, "")
		halves(t, k)
		later(50 * time.Second)
		ip(t, "link del "+half)
		plantHalf(t, "") // ADD again: it replaces the half one
		halves(t, k)
		later(50 * time.Second)
		if got := halves(t, k); got != nil {
			t.Errorf("of the second attempt's 50 s %q are taken for ended", got)
		}
		ip(t, "link set "+half+" alias overlay/c1/eth0")
		later(time.Hour)
		if got := halves(t, k); got != nil {
			t.Errorf("%q has committed and is taken for ended", got)
		}
	})
}

// later lets the time of a bubble go by.
func later(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // no time at all goes by outside
