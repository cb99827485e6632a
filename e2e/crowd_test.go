package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlayd/overlayd/e2e/lab"
)

// TestTwentyHostsStartAtOnceOnAPoolOfTwenty: each gets a subnet of its own, and none gives up.
func TestTwentyHostsStartAtOnceOnAPoolOfTwenty(t *testing.T) {
	t.Parallel()
	lab.Need(t)
	const crowd = 20
	l, err := lab.New("crowd", t.TempDir(), lab.Binaries())
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Logs())
		}
		must(t, l.Close())
	})
	must(t, l.Etcd())
	for i := range crowd {
		_, err := l.Host(fmt.Sprintf("host%d", i+1), fmt.Sprintf("192.0.2.%d", i+7))
		must(t, err)
	}
	file := filepath.Join(t.TempDir(), "network.json")
	must(t, os.WriteFile(file, []byte(`{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.20.0"}`), 0o600))
	_, err = l.Hosts()[0].Overlayd("config", "set", file)
	must(t, err)

	start := time.Now()
	for _, h := range l.Hosts() {
		must(t, h.Start())
	}
	holder := map[netip.Prefix]string{}
	for _, h := range l.Hosts() {
		must(t, h.Ready(crowd-1)) // fails if the daemon has ended
		subnets, err := h.Subnets()
		must(t, err)
		if other, taken := holder[subnets[0]]; taken {
			t.Errorf("%s and %s both have %s", h.ID, other, subnets[0])
		}
		holder[subnets[0]] = h.ID
	}
	t.Logf("all ready after %s", time.Since(start).Round(time.Millisecond))
	if len(holder) != crowd {
		t.Errorf("%d hosts have %d subnets", crowd, len(holder))
	}
}
