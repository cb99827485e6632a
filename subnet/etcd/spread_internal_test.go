package etcd

import (
	"testing"
	"time"
)

// TestManyHostsDoNotReadAtOnceAndFewDoNotWait: the wait grows with the network and is bounded.
func TestManyHostsDoNotReadAtOnceAndFewDoNotWait(t *testing.T) {
	for hosts, most := range map[int]time.Duration{0: 0, 5: 2 * time.Millisecond, 1000: 400 * time.Millisecond, 100_000: 2 * time.Second} {
		var longest, shortest time.Duration = 0, time.Hour
		for range 200 {
			d := Spread(hosts)
			longest, shortest = max(longest, d), min(shortest, d)
		}
		if longest > most || longest < most/2 || shortest > most/2 {
			t.Errorf("%d hosts wait %s to %s, want them all over 0 to %s", hosts, shortest, longest, most)
		}
	}
}
