package subnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
)

// savedHead begins a saved snapshot: what it is, the version of its form, and the checksum of all that follows.
const savedHead = "overlayd-network 1 %x\n"

// ErrSaved says that a saved snapshot is damaged or of another version. It must not be used.
var ErrSaved = errors.New("saved network")

// saved is what of a snapshot is worth keeping: usable leases under their configuration.
type saved struct {
	Network  string  `json:"network"` // which one of the store's: its prefix
	Revision int64   `json:"revision"`
	Config   Config  `json:"config"`
	Leases   []Lease `json:"leases"`
}

// Save returns the snapshot of the named network as text with a checksum, for [Load] after a reboot without a store.
func (s Snapshot) Save(network string) []byte {
	body, err := json.Marshal(saved{Network: network, Revision: s.Revision, Config: s.Config, Leases: s.Leases})
	if err != nil {
		return nil // cannot happen: every field has a text form
	}
	return append(fmt.Appendf(nil, savedHead, sha256.Sum256(body)), body...)
}

// ErrOtherNetwork says that a saved snapshot is sound, and of another network.
var ErrOtherNetwork = errors.New("of another network")

// Load reads what [Snapshot.Save] returned for the network, to the last byte: anything else is [ErrSaved], or
// [ErrOtherNetwork]. The snapshot is stale, and vetted as one from the store is.
func Load(text []byte, network string) (Snapshot, error) {
	head, body, _ := bytes.Cut(text, []byte("\n"))
	if want := fmt.Appendf(nil, savedHead, sha256.Sum256(body)); !bytes.Equal(append(head, '\n'), want) {
		return Snapshot{}, fmt.Errorf("%w: the checksum is wrong", ErrSaved)
	}
	var v saved
	if err := json.Unmarshal(body, &v); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", ErrSaved, err)
	}
	if v.Network != network {
		return Snapshot{}, fmt.Errorf("saved network: %w: %s", ErrOtherNetwork, v.Network)
	}
	s := Vet(v.Revision, v.Config, v.Leases, nil, nil)
	s.Stale = true
	return s, nil
}
