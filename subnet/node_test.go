package subnet_test

import (
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

func TestCheckNode(t *testing.T) {
	for _, c := range []struct {
		claim, name string
		good        bool
	}{
		{"a host name", "host1", true},
		{"a full name", "Host-1.example_lab.org", true},
		{"a number", "7", true},
		{"the longest", strings.Repeat("n", 253), true},
		{"longer", strings.Repeat("n", 254), false},
		{"nothing", "", false},
		{"a dot first", ".hidden", false},
		{"a dash first", "-v", false},
		{"a path", "../config", false},
		{"a space", "two words", false},
		{"a line feed at the end", "host1\n", false},
		{"no ASCII", "hôte", false},
	} {
		t.Run(c.claim, func(t *testing.T) {
			err := subnet.CheckNode(c.name)
			if (err == nil) != c.good {
				t.Errorf("%q: got %v, want it good: %t", c.name, err, c.good)
			}
			if err != nil && len(err.Error()) > 250 {
				t.Errorf("%q: an error of %d bytes: %v", c.name, len(err.Error()), err)
			}
		})
	}
}
