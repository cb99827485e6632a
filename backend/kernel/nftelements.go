package kernel

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// readElements adds the rows that a set holds.
func (k *Kernel) readElements(family string, set nftSet, s backend.State) error {
	var bounds []bound // of intervals that are two elements each
	err := k.nftDump(unix.NFT_MSG_GETSETELEM, familyNumber(family), backend.TableName, set.name, func(_ uint8, attrs []byte) {
		for kind, value := range attributes(attrs) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, element := range attributes(value) {
				e, end := elementFrom(element)
				e.family, e.set = family, set.name
				if set.interval && !set.concat() && e.first != nil {
					bounds = append(bounds, bound{bytes.Clone(e.first), end})
					continue
				}
				s.Found(rowOf(set, e))
			}
		}
	})
	for _, e := range intervals(bounds) {
		e.family, e.set = family, set.name
		s.Found(rowOf(set, e))
	}
	if err != nil {
		return fmt.Errorf("read nft set %s %s: %w", family, set.name, err)
	}
	return nil
}

// elementFrom reads one element, and whether it only ends an interval.
func elementFrom(attrs []byte) (e nftElement, end bool) {
	const keyEnd = 10 // NFTA_SET_ELEM_KEY_END
	for kind, value := range attributes(attrs) {
		switch kind {
		case unix.NFTA_SET_ELEM_FLAGS:
			end = be32Of(value)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY, keyEnd:
			for kind, data := range attributes(value) {
				if kind != unix.NFTA_DATA_VALUE {
					continue
				}
				if e.first == nil {
					e.first = data
				} else {
					e.last = data
				}
			}
		}
	}
	return e, end
}

// bound is where an interval begins, or where one has ended.
type bound struct {
	key []byte
	end bool
}

// intervals joins bounds. One that does not end lasts to the last address.
func intervals(bounds []bound) []nftElement {
	slices.SortFunc(bounds, func(a, b bound) int {
		if c := bytes.Compare(a.key, b.key); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1
		}
		return 1
	})
	var all []nftElement
	for i, b := range bounds {
		if b.end {
			continue
		}
		last := bytes.Repeat([]byte{0xff}, len(b.key))
		if i+1 < len(bounds) && bounds[i+1].end {
			last = previous(bounds[i+1].key)
		}
		all = append(all, nftElement{first: b.key, last: last})
	}
	return all
}

// previous returns the key before b, which is not the first.
func previous(b []byte) []byte {
	p := bytes.Clone(b)
	for i := len(p) - 1; i >= 0; i-- {
		if p[i]--; p[i] != 0xff {
			break
		}
	}
	return p
}
