package etcd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// act does one step of a host: an attempt of the package's, or something that happens to the host. It returns what came of
// it. What does not apply does nothing.
func (w *world) act(d *daemon, s step) any {
	switch s.verb {
	case "join": // a daemon starts, or has started and tries again; no pod has an address
		if d.claim == nil {
			d.claim, d.held = d.store.Former(d.want(), w.terms(d)), false
		}
		if d.held {
			return "has"
		}
		return w.acquired(d, d.claim.acquire(w.ctx, nil))
	case "rejoin": // a daemon starts and pods have addresses
		if d.claim == nil && d.saved.Subnet.IsValid() {
			d.claim, d.held = d.store.Former(d.want(), w.terms(d)), true
			return w.acquired(d, d.claim.Regain(w.ctx))
		}
	case "drain": // the last pod has gone from a subnet that is somebody else's
		if d.claim != nil && d.lost {
			w.crash(d)
			d.saved = subnet.Lease{}
			d.claim = d.store.Former(d.want(), w.terms(d))
			return w.acquired(d, d.claim.acquire(w.ctx, nil))
		}
	case "regain":
		if d.claim != nil && d.held {
			return w.acquired(d, d.claim.Regain(w.ctx))
		}
	case "renew":
		if d.claim != nil && d.held && !d.lost {
			return w.doubted(d, d.claim.renew(w.ctx))
		}
	case "live":
		if d.claim != nil && d.held && !d.lost {
			return w.doubted(d, d.claim.live(w.ctx))
		}
	case "probe":
		if d.claim != nil && d.held && !d.lost {
			return w.doubted(d, d.claim.probe(w.ctx))
		}
	case "beat":
		return w.beat(d)
	case "release":
		w.crash(d)
		for _, l := range w.lives { // these it knows of: it sees what hangs on them
			used := w.last[d.store.keys.node(d.name)].GetLease() == l.id || w.last[d.store.keys.alive(d.name)].GetLease() == l.id
			l.excused = l.excused && !used
		}
		_, err := d.store.Release(w.ctx, d.name, w.terms(d).Boot)
		if err != nil {
			w.excuse(d)
		}
		return err
	case "reserve":
		pool := mustConfig(configs["wide"]).IPv4
		_, err := d.store.reserve(w.ctx, d.name, pool.At(uint64(s.arg[0]-'0')))
		return err
	case "unreserve":
		_, err := d.store.Unreserve(w.ctx, d.name)
		return err
	default:
		return w.suffer(d, s)
	}
	return "nothing to do"
}

// suffer does what happens to a host, and says whether what should be true of it is.
func (w *world) suffer(d *daemon, s step) any {
	switch s.verb {
	case "crash":
		w.crash(d)
	case "wipedisk":
		w.crash(d)
		d.saved = subnet.Lease{}
	case "reboot":
		w.crash(d)
		d.boot++
	case "move":
		d.ips = append(d.ips, addressOf(s.arg))
		if d.claim != nil && d.claim.Readdress(d.ip()) {
			d.back = true
		}
	case "jump":
		leap, err := time.ParseDuration(s.arg)
		w.must(err)
		d.leap += leap
		d.void = d.void || leap < 0 // CLOCK_BOOTTIME never does that
	case "cut":
		d.cut = true
	case "deaf":
		d.deaf = true
	case "heal":
		d.cut, d.deaf = false, false
	case "holds", "fenced", "waits", "unheld":
		if got := d.standing(); !strings.HasPrefix(got, s.verb) || s.arg != "" && !strings.Contains(got, s.arg) {
			w.failf("%s %s, want %s %s", d.id, got, s.verb, s.arg)
		}
	default:
		panic("history: " + s.verb)
	}
	return ""
}

// standing says how a daemon stands, in the words of the steps that expect it.
func (d *daemon) standing() string {
	switch {
	case d.claim == nil:
		return "unheld"
	case d.lost:
		return "fenced"
	case !d.held || d.claim.key == "":
		return "waits"
	}
	return "holds " + d.claim.Lease().String()
}

// crash ends the daemon. What it alone knew of is nobody's to give back.
func (w *world) crash(d *daemon) {
	d.claim, d.held, d.lost, d.back, d.unsure = nil, false, false, false, false
	w.excuse(d)
}

// excuse says that what a host was granted until now may stay until it expires.
func (w *world) excuse(d *daemon) {
	for _, l := range w.lives {
		if l.by == d {
			l.excused = true
		}
	}
}

// acquired takes note of what an attempt for the claim came to.
func (w *world) acquired(d *daemon, err error) any {
	d.unsure = err != nil && (d.unsure || errors.Is(err, errUnknown))
	if d.guess && errors.Is(err, errNoAnswer) && !errors.Is(err, errUnknown) {
		w.excuse(d) // the write by which the network settles
	}
	d.lost = d.lost || errors.Is(err, ErrLost)
	if err != nil {
		d.back = d.held && !errors.Is(err, ErrLost) // Keep tries again
		return err
	}
	lease := d.claim.Lease()
	if d.held && !slices.Equal(lease.Subnets(), d.saved.Subnets()) {
		w.failf("%s had %s and has %s: its pods lose their addresses", d.id, d.saved, lease)
	}
	d.held, d.lost, d.back, d.void, d.saved = true, false, false, false, lease
	return lease
}

// doubted takes note of an attempt to see or renew what is held.
func (w *world) doubted(d *daemon, err error) any {
	d.back = d.back || errors.Is(err, errGone)
	return err
}

// beat is what a daemon does all the time: Keep's loop, and the daemon's own round it.
func (w *world) beat(d *daemon) any {
	switch {
	case d.claim == nil:
		return ""
	case !d.held:
		return w.acquired(d, d.claim.acquire(w.ctx, nil))
	case d.lost || d.claim.key == "":
		return w.acquired(d, d.claim.Regain(w.ctx))
	}
	said := []any{w.doubted(d, d.claim.renew(w.ctx))}
	said = append(said, w.doubted(d, d.claim.live(w.ctx)), w.doubted(d, d.claim.probe(w.ctx)))
	if d.back {
		said = append(said, w.acquired(d, d.claim.Regain(w.ctx)))
	}
	return fmt.Sprint(said...)
}

// end brings peace: faults stop, of hosts with one name or address one stays, and all get the time that they need. Then
// every one has exactly one lease, that nobody else has, on two etcd leases.
func (w *world) end() {
	w.log = append(w.log, "--- the end")
	for _, id := range bill {
		w.take(step{who: id, verb: "heal"})
	}
	w.take(step{verb: "deliver"})
	w.take(step{verb: "config", arg: "wide"})
	for _, id := range []string{"twin", "rival"} {
		w.take(step{who: id, verb: "wipedisk"})
	}
	for _, d := range w.hosts {
		d.leap = 0
	}
	for key, holder := range w.writers {
		if holder == "flannel" {
			_, err := w.kv.DeleteRange(w.ctx, &pb.DeleteRangeRequest{Key: []byte(key)})
			w.must(err)
		}
	}
	w.disaster()
	for _, id := range bill[:4] {
		w.take(step{who: id, verb: "unreserve"})
		w.take(step{who: id, verb: "move", arg: cast[id][1][len("192.0.2."):]})
	}
	w.take(step{who: "rival", verb: "unreserve"})
	w.take(step{verb: "run", arg: (claimTTL + 2*AliveTTL).String()})
	for _, id := range bill[:4] {
		w.justlyFenced(w.hosts[id])
		w.take(step{who: id, verb: "drain"})
		w.take(step{who: id, verb: "join"})
	}
	w.take(step{verb: "run", arg: (claimTTL + 2*AliveTTL).String()})
	w.settled()
}

// justlyFenced makes sure that who was told that somebody else has its subnet was told the truth.
func (w *world) justlyFenced(d *daemon) {
	if d.claim == nil || !d.lost {
		return
	}
	mine := d.claim.Lease()
	for _, l := range w.held {
		if l.owner != d.name && (l.Subnet.Overlaps(mine.Subnet) || l.Subnet6.Overlaps(mine.Subnet6)) {
			return
		}
	}
	w.failf("%s does not get %s back, and nobody has it", d.id, mine)
}

// settled looks at the store after the end.
func (w *world) settled() {
	leases := w.held
	perNode := map[string]int{}
	for _, l := range leases {
		perNode[l.owner]++
	}
	for _, id := range bill[:4] {
		d := w.hosts[id]
		if perNode[d.name] != 1 || d.lost || !d.held {
			w.failf("at the end %s %s, and the store has %d leases of its: want one", id, d.standing(), perNode[d.name])
		}
		mine := d.claim.Lease()
		kv := w.last[d.store.keys.subnet(mine)]
		if kv == nil || clientv3.LeaseID(kv.Lease) != d.claim.claim {
			w.failf("at the end %s believes to have %s and the store does not say so", id, mine)
		}
	}
	if len(leases) != 4 || len(w.lives) != 8 {
		w.failf("at the end there are %d leases on %d etcd leases: want 4 on 8", len(leases), len(w.lives))
	}
}
