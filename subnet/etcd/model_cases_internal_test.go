package etcd

import "time"

// cases are histories with a name: those that once failed, and those that show what chance seldom comes by. All of them end
// in peace, see [world.end].
var cases = []struct {
	name    string
	settle  time.Duration
	history []string
}{
	{name: "a write that is lost leaves no etcd leases", history: []string{
		"a join / write 1 lost",
		"a join",
		"a holds",
	}},
	{name: "of a write whose answer is lost the outcome is read", history: []string{
		"a join / write 1 unanswered",
		"a holds",
		"a regain / write 1 unanswered",
		"a probe",
		"a release / write 1 unanswered",
		"b join",
	}},
	{name: "the answer to the look at it is lost as well", history: []string{
		"a join / write 1 unanswered / range 3 lost",
		"a waits",
		"a join",
		"a holds",
	}},
	{name: "a write comes late, after the next attempt's", history: []string{
		"a join / write 1 late",
		"a join",
		"deliver",
		"a probe",
		"a holds",
	}},
	{name: "a write comes late, between the next attempt's reading and its write", history: []string{
		"a join / write 1 late",
		"a join / write 1 meanwhile deliver",
		"a join",
		"a holds",
	}},
	{name: "a write comes twice, and what the first made stays", history: []string{
		"config narrow",
		"a join",
		"a regain / write 1 twice",
		"b join",
		"c join",
		"a holds",
		"a release / write 1 twice",
		"c join",
		"c holds",
	}},
	{name: "the deadline does not move while the lease may hang on another etcd lease", history: []string{
		"config narrow",
		"a join", "c join",
		"a move 9",
		"a regain / write 1 unanswered / range 3 lost", // now its keys hang on the new etcd leases
		"c move 8", "c regain", "a move 8", // which it cannot have: every attempt to get well fails
		"wait 55s", "a renew", "a live", "c renew", "c live",
		"wait 55s", "a renew", "a live", "c renew", "c live",
		"wait 55s", "a renew", "a live", "c renew", "c live",
		"wait 55s", "a renew", "a live", "c renew", "c live",
		"twin join",
		"twin waits", // nor may it seem dead
		"b join",
		"b waits",
		"a regain",
		"a holds",
	}},
	{name: "the deadline is counted from before the etcd lease was asked for", history: []string{
		"config narrow",
		"c join",
		"a join / write 1 meanwhile wait 25s",
		"wait 55s", "c renew", "c live",
		"wait 55s", "c renew", "c live",
		"wait 49s",
		"b join", "b holds",
	}},
	{name: "nothing is taken under a configuration that was just changed", history: []string{
		"a join / write 1 meanwhile config moved",
		"a waits", "a join", "a holds 10.6.",
	}},
	{name: "a host that is gone is evicted though its lease is of another VNI", history: []string{
		"b join",
		"wait 70s",
		"config vni",
		"rival join",
		"rival holds",
		"config wide",
	}},
	{name: "hosts put their leases back after a wipe before a newcomer chooses", settle: AliveTTL, history: []string{
		"a join", "wait 65s", "a join", "b join", "c join",
		"a holds", "b holds", "c holds",
		"wipe",
		"d join", "d waits",
		"run 50s",
		"a holds 10.5.5.0", "b holds 10.5.2.0", "c holds 10.5.1.0", "d waits",
		"run 25s",
		"d holds",
	}},
	{name: "the twin of a living host waits, and takes over from a dead one", history: []string{
		"a join",
		"twin join", "twin waits",
		"a cut", "wait 70s",
		"twin join", "twin holds",
		"a heal", "a regain", "a fenced",
	}},
	{name: "the rival of a living host waits, and takes the address of a dead one", history: []string{
		"b join",
		"rival join", "rival waits",
		"b cut", "wait 70s",
		"rival join / write 1 meanwhile b heal, b regain", // it was not dead
		"rival waits",
		"b cut", "wait 70s",
		"rival join", "rival holds",
	}},
	{name: "whoever bids for a subnet sees that it has been reserved", history: []string{
		"a reserve 5", "a unreserve", // it has a history
		"a join / write 1 meanwhile d reserve 5",
		"a waits", "a join", "a holds",
		"d join", "d holds 10.5.5.0",
	}},
	{name: "likewise, for one without a history", history: []string{
		"a join / write 1 meanwhile d reserve 5",
		"a waits", "a join", "a holds",
		"d join", "d holds 10.5.5.0",
	}},
	{name: "a host that comes back does not take its subnet from whoever has it now", history: []string{
		"config narrow",
		"c join", "c cut", "a join", "a cut",
		"wait 200s",
		"b join", "b holds 10.5.1.0",
		"c heal", "c regain", "c fenced",
		"b probe", "b holds 10.5.1.0",
		"b release",
		"c regain", "c holds 10.5.1.0",
	}},
	{name: "of two hosts of one name one is faster, with another subnet", history: []string{
		"a join / write 1 meanwhile twin reserve 3, twin join",
		"a waits", "twin holds 10.5.3.0",
	}},
	{name: "of two hosts of one address one is faster", history: []string{
		"b join / write 1 meanwhile rival join",
		"b waits", "rival holds",
	}},
	{name: "flannel is faster, and knows no history", history: []string{
		"a join / write 1 meanwhile flannel 5",
		"a waits", "a join",
		"a holds 10.5.6.0",
	}},
	{name: "a host takes its subnet back though it was reserved meanwhile: its pods are in it", history: []string{
		"c join", "c holds 10.5.1.0",
		"wait 200s",
		"d reserve 1",
		"c probe", "c regain",
		"c holds 10.5.1.0",
		"d join", "d holds",
	}},
}
