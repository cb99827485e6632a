// Package backendtest holds a model of the kernel for tests, and the one suite that both the model and the real kernel
// pass.
package backendtest

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/overlayd/overlayd/backend"
)

// Fake is a kernel in memory: rows that need a device are refused without it and vanish with it, and so does what was
// said to be refused. The zero Fake has no rows. It is safe for concurrent use.
type Fake struct {
	mu     sync.Mutex
	host   backend.Host
	state  backend.State
	refuse map[string]error
	down   error
	reads  int
}

// NewFake returns a fake machine without rows.
func NewFake(h backend.Host) *Fake {
	return &Fake{host: h, state: backend.State{}, refuse: map[string]error{}}
}

// Read implements [backend.Kernel].
func (f *Fake) Read() (backend.Host, backend.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return f.host, maps.Clone(f.state), f.down
}

// Apply implements [backend.Kernel].
func (f *Fake) Apply(changes []backend.Change) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make([]error, len(changes))
	for i, c := range changes {
		errs[i] = f.apply(c)
	}
	return errs
}

func (f *Fake) apply(c backend.Change) error {
	if err := f.refuse[c.Row().String()]; err != nil {
		return err
	}
	if c.New == nil {
		f.remove(c.Old)
		return nil
	}
	if err := f.missing(c.New); err != nil {
		return err
	}
	if old, ok := c.Old.(backend.VXLAN); ok && !alterable(old, c.New) {
		f.remove(c.Old)
	}
	f.state.Add(c.New)
	return nil
}

// alterable says whether the kernel can turn one VXLAN device into the other without making it anew.
func alterable(old backend.VXLAN, to backend.Entry) bool {
	v, ok := to.(backend.VXLAN)
	return ok && old.VNI == v.VNI && old.Port == v.Port && old.Local.Is4() == v.Local.Is4()
}

// missing says what the row needs and does not find.
func (f *Fake) missing(e backend.Entry) error {
	dev := device(e)
	if dev == "" || dev == f.host.Uplink.Name || f.has(dev) {
		return nil
	}
	return fmt.Errorf("device %s: %w", dev, errNoDevice)
}

var errNoDevice = errors.New("no such device")

func (f *Fake) has(dev string) bool {
	for _, e := range f.state {
		switch e := e.(type) {
		case backend.VXLAN:
			if e.Name == dev {
				return true
			}
		case backend.Bridge:
			if e.Name == dev {
				return true
			}
		}
	}
	return false
}

// device names the device that a row is on, "" when it is on none.
func device(e backend.Entry) string {
	switch e := e.(type) {
	case backend.Addr:
		return e.Dev
	case backend.FDB:
		return e.Dev
	case backend.Neigh:
		return e.Dev
	case backend.Nexthop:
		return e.Dev
	case backend.Route:
		return e.Dev
	}
	return ""
}

// remove takes a row away, and with a device all that is on it.
func (f *Fake) remove(e backend.Entry) {
	var dev string
	switch e := e.(type) {
	case backend.VXLAN:
		dev = e.Name
	case backend.Bridge:
		dev = e.Name
	}
	maps.DeleteFunc(f.state, func(_, row backend.Entry) bool { return row == e || dev != "" && device(row) == dev })
}

// Become makes the machine another: what it says of itself, not its rows.
func (f *Fake) Become(h backend.Host) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host = h
}

// State returns the rows.
func (f *Fake) State() backend.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.state)
}

// Plant puts rows into the kernel as somebody else's hand would.
func (f *Fake) Plant(rows ...backend.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Add(rows...)
}

// Lose takes a row out of the kernel as somebody else's hand would.
func (f *Fake) Lose(row backend.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(row)
}

// Refuse makes every change of the given row fail; nil makes it succeed again.
func (f *Fake) Refuse(row backend.Entry, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[row.String()] = err
}

// Down makes reads fail; nil makes them succeed again.
func (f *Fake) Down(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// Reads counts the calls of Read.
func (f *Fake) Reads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}
