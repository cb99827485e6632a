package backend_test

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend"
)

// A set holds two pairs of one source. Whichever is read first, the wrong one goes and the right one stays untouched.
func TestOfTwoPairsTheWrongOneGoes(t *testing.T) {
	inner := netip.MustParsePrefix("10.5.35.0/24")
	right := backend.Pair{Set: backend.SetSubnets, Inner: inner, Outer: netip.MustParseAddr("192.0.2.8")}
	wrong := backend.Pair{Set: backend.SetSubnets, Inner: inner, Outer: netip.MustParseAddr("192.0.2.77")}
	worse := backend.Pair{Set: backend.SetSubnets, Inner: inner, Outer: netip.MustParseAddr("192.0.2.99")}
	const gone = "- element inet overlayd subnets4 { 192.0.2.77 . 10.5.35.0/24 }\n"
	for _, c := range []struct {
		claim string
		read  []backend.Entry
		want  []backend.Entry
		text  string
	}{
		{"the right one first", []backend.Entry{right, wrong}, []backend.Entry{right}, gone},
		{"the wrong one first", []backend.Entry{wrong, right}, []backend.Entry{right}, gone},
		{"in the middle of three", []backend.Entry{wrong, right, worse}, []backend.Entry{right}, "- element inet overlayd subnets4 { 192.0.2.99 . 10.5.35.0/24 }\n" + gone},
		{"both wrong: one becomes right", []backend.Entry{wrong, worse}, []backend.Entry{right},
			"~ element inet overlayd subnets4 { 192.0.2.8 . 10.5.35.0/24 } (was element inet overlayd subnets4 { 192.0.2.77 . 10.5.35.0/24 })\n" +
				"- element inet overlayd subnets4 { 192.0.2.99 . 10.5.35.0/24 }\n"},
		{"none wanted", []backend.Entry{wrong, worse}, nil, "- element inet overlayd subnets4 { 192.0.2.99 . 10.5.35.0/24 }\n" + gone},
	} {
		t.Run(c.claim, func(t *testing.T) {
			have := backend.State{}
			for _, row := range c.read {
				have.Found(row)
			}
			before := maps.Clone(have)
			checkText(t, diffText(backend.Diff(backend.NewState(c.want...), have)), c.text)
			if !maps.Equal(have, before) {
				t.Errorf("what was read is changed to\n%s", have)
			}
		})
	}
}

func TestStraysReadAsNFTHasThem(t *testing.T) {
	for _, c := range []struct {
		row  backend.Stray
		want string
	}{
		{backend.Stray{Row: backend.PodMAC{Link: "veth1"}}, "element bridge overlayd macs { veth1 . 00:00:00:00:00:00 }"},
		{backend.Stray{Family: "inet", Set: "peers4"}, "element inet overlayd peers4 { * }"},
		{backend.Stray{Family: "inet", Set: "own4", First: "\x0a\x05\x00\x01", Last: "\x0a\x05\x00\x06"}, "element inet overlayd own4 { 0x0a050001-0x0a050006 }"},
	} {
		checkText(t, c.row.String(), c.want)
	}
}
