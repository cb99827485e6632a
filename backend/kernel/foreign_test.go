package kernel_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/backendtest"
	"github.com/overlayd/overlayd/backend/kernel"
)

// ip runs an admin's command here.
func ip(t testing.TB, args string) string {
	t.Helper()
	text, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, text)
	}
	return string(text)
}

// TestNoRouteIsMadeOverAStrangersNexthop: it would send pods' packets there, in clear.
func TestNoRouteIsMadeOverAStrangersNexthop(t *testing.T) {
	k := open(t)
	ip(t, "nexthop add id 142000035 via 192.0.2.200 dev eth0")
	t.Cleanup(func() { ip(t, "nexthop del id 142000035") })
	h, have, err := k.Read()
	must(t, err)
	refused := map[string]error{}
	changes := backend.Diff(backend.Plan(h, backendtest.Network(t)), have)
	for i, err := range k.Apply(changes) {
		if err != nil {
			refused[strings.Fields(changes[i].String())[1]] = err
		}
	}
	if len(refused) != 2 || !errors.Is(refused["nexthop"], unix.EEXIST) || refused["10.5.35.0/24"] == nil {
		t.Errorf("refused are %v, want the nexthop and its route", refused)
	}
	if routes := ip(t, "route show 10.5.35.0/24"); routes != "" {
		t.Errorf("there is %s", routes)
	}
	if routes := ip(t, "route show 10.5.36.0/24"); !strings.Contains(routes, "nhid 142000036") {
		t.Errorf("the other peer's route is %q", routes)
	}
}

// TestAStrangersRouteIsNamedAndStays: whose place it is, only the admin can say.
func TestAStrangersRouteIsNamedAndStays(t *testing.T) {
	k := open(t)
	ip(t, "route add 10.5.35.0/24 via 192.0.2.200 proto static")
	h, have, err := k.Read()
	must(t, err)
	changes := backend.Diff(backend.Plan(h, backendtest.Network(t)), have)
	var refused []string
	for i, err := range k.Apply(changes) {
		if err != nil {
			refused = append(refused, changes[i].Row().String()+": "+err.Error())
		}
	}
	if len(refused) != 1 || !strings.Contains(refused[0], "route 10.5.35.0/24 via 192.0.2.200 dev eth0 proto static has its place") {
		t.Errorf("refused are %q, want our route, and theirs named", refused)
	}
	if routes := ip(t, "route show 10.5.35.0/24"); !strings.Contains(routes, "via 192.0.2.200 dev eth0 proto static") {
		t.Errorf("their route is now %q", routes)
	}
}

// TestForeignFDBEntriesOnOurDeviceAreSeen: one to another port, and one that is static instead of permanent.
func TestForeignFDBEntriesOnOurDeviceAreSeen(t *testing.T) {
	k := open(t)
	h, have, err := k.Read()
	must(t, err)
	network := backendtest.Network(t)
	for _, err := range k.Apply(backend.Diff(backend.Plan(h, network), have)) {
		must(t, err)
	}
	peer := network.Leases[1].MAC.String()
	for _, args := range []string{
		"fdb replace " + peer + " dev overlay.1 dst 192.0.2.8 port 9999 self permanent",
		"fdb add 02:00:00:00:00:99 dev overlay.1 dst 192.0.2.99 self static",
	} {
		if text, err := exec.Command("bridge", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("bridge %s: %v: %s", args, err, text)
		}
	}
	_, have, err = k.Read()
	must(t, err)
	changes := backend.Diff(backend.Plan(h, network), have)
	if len(changes) != 2 || changes[0].New == nil || changes[1].New != nil {
		t.Fatalf("seen is %v, want one entry to mend and one to remove", changes)
	}
	for _, err := range k.Apply(changes) {
		must(t, err)
	}
	if _, have, err = k.Read(); err != nil || len(backend.Diff(backend.Plan(h, network), have)) > 0 {
		t.Errorf("not mended: %v %v", err, backend.Diff(backend.Plan(h, network), have))
	}
}

// TestTheDefaultRouteLeadsToTheUplink, in whatever form it comes.
func TestTheDefaultRouteLeadsToTheUplink(t *testing.T) {
	for _, routes := range []string{
		"default via 192.0.2.1",
		"default nexthop via 192.0.2.1 nexthop via 192.0.2.2",
		"default via 192.0.2.1, 0.0.0.0/1 dev lo, 128.0.0.0/1 dev lo",
	} {
		t.Run(routes, func(t *testing.T) {
			plugIn(t)
			for route := range strings.SplitSeq(routes, ", ") {
				ip(t, "route add "+route)
				t.Cleanup(func() { ip(t, "route del "+route) })
			}
			k, err := kernel.Open(kernel.Options{Node: "h1"})
			must(t, err)
			h, _, err := k.Read()
			must(t, errors.Join(err, k.Close()))
			if h.Uplink.Name != "eth0" || h.Uplink.Addr.String() != "192.0.2.7" || len(h.Gateways) == 0 || h.Gateways[0].String() != "192.0.2.1" {
				t.Errorf("uplink %+v, gateways %v", h.Uplink, h.Gateways)
			}
		})
	}
}
