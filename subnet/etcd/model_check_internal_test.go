package etcd

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

// written is a lease as the store has it, read without this package's reader.
type written struct {
	subnet.Lease // only the subnets
	owner        string
	ip           netip.Addr
	kv           *mvccpb.KeyValue
}

func (w *world) leases(state contents) []written {
	var all []written
	for _, kv := range inRange(state, []byte(testPrefix+"/subnets/"), []byte(testPrefix+"/subnets0")) {
		var v value
		w.must(json.Unmarshal(kv.Value, &v))
		l, err := parseLeaseName(strings.TrimPrefix(string(kv.Key), testPrefix+"/subnets/"))
		w.must(err)
		all = append(all, written{Lease: l, owner: v.Node, ip: netip.MustParseAddr(v.PublicIP), kv: kv})
	}
	return all
}

func (l written) overlaps(m subnet.Lease) bool {
	return l.Subnet.Overlaps(m.Subnet) || l.Subnet6.Overlaps(m.Subnet6)
}

// observe compares the store with what it was before a write, a revocation or an expiry. By is nil when it was no host's.
func (w *world) observe(by *daemon, cause string) {
	before, after := w.last, w.contents()
	was, leases := w.held, w.leases(after)
	w.last, w.held = after, leases
	for i, l := range leases {
		w.complete(l, after)
		for _, m := range leases[:i] {
			if l.overlaps(m.Lease) {
				w.failf("I4: %s of %s overlaps %s of %s", leaseName(l.Lease), l.owner, leaseName(m.Lease), m.owner)
			}
			if l.owner == m.owner && l.owner != "" {
				w.failf("%s has two leases, %s and %s", l.owner, leaseName(l.Lease), leaseName(m.Lease))
			}
		}
	}
	w.noOrphans(after)
	w.reservable(before, after)
	w.neverLess(before, after)
	for _, l := range was {
		if now := after[string(l.kv.Key)]; now.GetModRevision() != l.kv.ModRevision {
			w.lawful(l, before, by, cause)
		}
	}
	for _, l := range leases {
		if l.kv.ModRevision != before[string(l.kv.Key)].GetModRevision() && by != nil {
			w.writers[string(l.kv.Key)] = by.id
			w.permitted(l, before, by)
		}
	}
}

// complete is I5: every lease has its records beside it, on one etcd lease. Flannel's has none.
func (w *world) complete(l written, state contents) {
	if l.owner == "" {
		return
	}
	k := keys{testPrefix}
	for key, want := range map[string]string{k.node(l.owner): leaseName(l.Lease), k.vtep(l.ip): l.owner} {
		kv := state[key]
		if string(kv.GetValue()) != want || kv.GetLease() != l.kv.Lease {
			w.failf("I5: beside %s of %s, %s is %q on the etcd lease %x, want %q on %x", leaseName(l.Lease), l.owner, key, kv.GetValue(), kv.GetLease(), want, l.kv.Lease)
		}
	}
	for _, p := range l.Subnets() {
		if h := w.past(state[k.history(p)]); h.Node != l.owner || h.Released {
			w.failf("I5: %s has %s, and its history says %+v", l.owner, p, h)
		}
	}
}

// noOrphans is I5 the other way round: a node's record names a lease of its.
func (w *world) noOrphans(state contents) {
	for _, kv := range inRange(state, []byte(testPrefix+"/overlayd/nodes/"), []byte(testPrefix+"/overlayd/nodes0")) {
		mine := func(l written) bool {
			return keys{testPrefix}.node(l.owner) == string(kv.Key) && leaseName(l.Lease) == string(kv.Value)
		}
		if !slices.ContainsFunc(w.held, mine) {
			w.failf("I5: %s says %s, and there is no such lease", kv.Key, kv.Value)
		}
	}
}

// reservable makes sure that nobody's subnet is reserved for somebody else.
func (w *world) reservable(before, after contents) {
	prefix := keys{testPrefix}.reservations()
	for key, kv := range after {
		if !strings.HasPrefix(key, prefix) || before[key].GetModRevision() == kv.ModRevision {
			continue
		}
		node, p := w.reserved(kv)
		for _, l := range w.held {
			if l.owner != node && slices.ContainsFunc(l.Subnets(), p.Overlaps) {
				w.failf("%s is reserved for %s while %s has %s", p, node, l.owner, leaseName(l.Lease))
			}
		}
	}
}

func (w *world) reserved(kv *mvccpb.KeyValue) (string, netip.Prefix) {
	var r reservation
	w.must(json.Unmarshal(kv.Value, &r))
	p, err := parsePrefixName(strings.TrimPrefix(string(kv.Key), keys{testPrefix}.reservations()))
	w.must(err)
	return r.Node, p
}

func (w *world) past(kv *mvccpb.KeyValue) past {
	var p past
	if kv != nil {
		w.must(json.Unmarshal(kv.Value, &p))
	}
	return p
}

// neverLess is I6: history is not forgotten, and its epochs never decrease. They grow when a subnet changes hands.
func (w *world) neverLess(before, after contents) {
	for key, kv := range before {
		if !strings.HasPrefix(key, keys{testPrefix}.histories()) {
			continue
		}
		if old, now := w.past(kv), w.past(after[key]); now.Epoch < old.Epoch || after[key] == nil {
			w.failf("I6: %s was %+v and is %+v", key, old, now)
		} else if now.Epoch == old.Epoch && (now.Node != old.Node || old.Released && !now.Released) {
			w.failf("I6: %s changed hands, was %+v and is %+v", key, old, now)
		}
	}
}

// lawful is I3: a lease changes by its holder's doing or by its end, and else only if its holder gave no sign of life and
// another host came with its name or its address.
func (w *world) lawful(l written, before contents, by *daemon, cause string) {
	holder := w.writers[string(l.kv.Key)]
	if by == nil {
		if cause != "the end of an etcd lease" || w.lifeOf(l.kv.Lease) != nil {
			w.failf("I3: %s changes the lease %s of %s", cause, leaseName(l.Lease), holder)
		}
		return
	}
	if by.id == holder {
		return
	}
	alive := before[keys{testPrefix}.alive(l.owner)]
	var p presence
	if alive != nil {
		w.must(json.Unmarshal(alive.Value, &p))
	}
	if alive != nil && (by.name != l.owner || !slices.Contains(by.ips, p.PublicIP)) {
		w.failf("I3: %s changes the lease %s of %s, which is alive: %s", by.id, leaseName(l.Lease), holder, alive.Value)
	}
	if by.name != l.owner && !slices.Contains(by.ips, l.ip) {
		w.failf("I3: %s changes the lease %s of %s, which has neither its name nor its address", by.id, leaseName(l.Lease), holder)
	}
	w.hosts[holder].void = true
}

// permitted makes sure that a lease that is new lies in the pool that is in force at that very revision, and that nobody
// gets what is reserved for somebody else. A host that takes back what it held itself gets no more than it had: its pods
// are in it.
func (w *world) permitted(l written, before contents, by *daemon) {
	var had value
	if kv := before[string(l.kv.Key)]; kv != nil {
		w.must(json.Unmarshal(kv.Value, &had))
	}
	if had.Node == l.owner || by.held && slices.Equal(by.saved.Subnets(), l.Subnets()) {
		return
	}
	k := keys{testPrefix}
	if c := mustConfig(string(w.last[k.config()].Value)); !c.Fits(l.Lease) {
		w.failf("%s gets %s when the configuration is %s", l.owner, leaseName(l.Lease), w.last[k.config()].Value)
	}
	for key, kv := range before {
		if !strings.HasPrefix(key, k.reservations()) {
			continue
		}
		if node, p := w.reserved(kv); node != l.owner && slices.ContainsFunc(l.Subnets(), p.Overlaps) {
			w.failf("%s gets %s, of which %s is reserved for %s", l.owner, leaseName(l.Lease), p, node)
		}
	}
}

// believes says whether the daemon may rely on its claim. Void is the one exception, see [daemon]: since it last took the
// claim, the store was wiped or restored, or it gave no sign of life for a minute and a host of its name or its address
// came, or its clock ran backwards.
func (w *world) believes(d *daemon) bool {
	return d.claim != nil && d.claim.key != "" && !d.lost && !d.void && w.now+d.leap < d.claim.Deadline()
}

// believe makes sure that what a daemon relies on is nobody else's, neither in the store nor in another one's belief.
func (w *world) believe() {
	for _, id := range slices.Sorted(maps.Keys(w.hosts)) {
		d := w.hosts[id]
		if !w.believes(d) {
			continue
		}
		mine := d.claim.Lease()
		for _, l := range w.held {
			if writer := w.writers[string(l.kv.Key)]; l.overlaps(mine) && writer != d.id {
				w.failf("I1: %s relies on %s until %s, now is %s, and the store has it for %s", d.id, mine, d.claim.Deadline(), w.now+d.leap, writer)
			}
		}
		for other, e := range w.hosts {
			if other != id && w.believes(e) && (written{Lease: mine}).overlaps(e.claim.Lease()) {
				w.failf("I1: %s and %s both rely on %s", id, other, mine)
			}
		}
	}
}

// tidy is I12: of the etcd leases that a host was granted and knows of, those that nothing hangs on are given back. After a
// write with an unknown outcome they may be in use, until there is a known one.
func (w *world) tidy(d *daemon) {
	if d.unsure || d.busy {
		return
	}
	used := map[int64]bool{}
	for _, kv := range w.last {
		used[kv.Lease] = true
	}
	if d.claim != nil {
		used[int64(d.claim.claim)], used[int64(d.claim.alive)] = true, true
	}
	for _, l := range w.lives {
		if l.by == d && !l.excused && !used[l.id] {
			w.failf("I12: nothing hangs on the etcd lease %x of %s, and %s after its attempt it is still there", l.id, d.id, w.now)
		}
	}
}

func mustConfig(text string) subnet.Config {
	c, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		panic(err)
	}
	return c
}
