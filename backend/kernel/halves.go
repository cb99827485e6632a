package kernel

import (
	"encoding/hex"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend"
)

// halfAge is how long an ADD of the CNI plugin may take. It takes milliseconds.
const halfAge = 60 * time.Second

// readHalves adds the links of attachments that were begun long ago and did not end.
func (k *Kernel) readHalves(m machine, s backend.State) {
	now := time.Now()
	seen := map[int]time.Time{}
	for _, l := range m.links {
		if !m.isHalf(l) {
			continue
		}
		a := l.Attrs()
		since, known := k.halves[a.Index]
		if !known {
			since = now
		}
		seen[a.Index] = since
		if now.Sub(since) >= halfAge || k.options.NoUplink { // who uninstalls does not wait
			s.Add(backend.Half{Link: a.Name})
		}
	}
	k.halves = seen
}

// isHalf says whether the link is provably one that the plugin made, on our bridge or cut off from it, and has not
// committed: its MAC says the same as its name, and it has no alias.
func (m machine) isHalf(l netlink.Link) bool {
	a := l.Attrs()
	const prefix, macDigits = "veth", 10
	digits := strings.TrimPrefix(a.Name, prefix)
	if l.Type() != "veth" || a.Alias != "" || len(digits) != macDigits+1 || len(a.HardwareAddr) != 6 || a.HardwareAddr[0] != 0x0e {
		return false
	}
	master := m.names[a.MasterIndex]
	if m.options.Bridge == "" || a.MasterIndex != 0 && master != m.options.Bridge {
		return false
	}
	return hex.EncodeToString(a.HardwareAddr[1:]) == digits[:macDigits]
}
