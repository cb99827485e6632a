package subnet

import (
	"fmt"
	"regexp"
)

var nodeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,252}$`)

// CheckNode says whether the name can be a node's: a host name (RFC 1123), underscores allowed.
func CheckNode(name string) error {
	if !nodeName.MatchString(name) {
		if len(name) > 60 {
			name = name[:60] + "..."
		}
		return fmt.Errorf("node name %q: want letters, digits, dots, dashes and underscores, 1 to 253 of them, beginning with a letter or digit", name)
	}
	return nil
}
