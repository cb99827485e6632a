package main

import (
	"sync"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// belief stands between the store and the loop: it decides what of a snapshot is believed, and looks again when time is
// what decides. Make one with its first two fields; it is safe for concurrent use.
type belief struct {
	grace time.Duration
	tell  func(subnet.Snapshot)

	mu      sync.Mutex
	settled subnet.Snapshot // what was told last
	heard   subnet.Snapshot // what the store said last
	again   *time.Timer
	ended   bool
}

// hear is told what the store says.
func (b *belief) hear(n subnet.Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard = n
	b.settle()
}

// repeat tells again what is believed, because what is made of it has changed.
func (b *belief) repeat() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heard.Revision != 0 && !b.ended {
		b.settle()
	}
}

// settle tells what is believed now. What is missing is looked at again when the first of it is due.
func (b *belief) settle() {
	now := time.Now()
	b.settled = subnet.Settle(b.settled, b.heard, now, b.grace)
	b.tell(b.settled)
	if b.again != nil {
		b.again.Stop()
		b.again = nil
	}
	if len(b.settled.Missing) == 0 {
		return
	}
	due := b.settled.Missing[0].Since
	for _, m := range b.settled.Missing {
		if m.Since.Before(due) {
			due = m.Since
		}
	}
	b.again = time.AfterFunc(due.Add(b.grace).Sub(now), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.ended {
			b.settle()
		}
	})
}

// end stops looking.
func (b *belief) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	if b.again != nil {
		b.again.Stop()
	}
}
