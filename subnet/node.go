package subnet

import "fmt"

const longestName = 253 // RFC 1123 section 2.1

// IsName says whether s consists of letters, digits and _ . - behind a letter or digit: what a node, a network or a container
// can be called (CNI spec, section "Parameters"). It is no regular expression: to compile one costs the CNI plugin a quarter
// of its time.
func IsName(s string) bool {
	for i, c := range []byte(s) {
		alnum := '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// CheckNode says whether the name can be a node's: a host name (RFC 1123), underscores allowed.
func CheckNode(name string) error {
	if !IsName(name) || len(name) > longestName {
		if len(name) > 60 {
			name = name[:60] + "..."
		}
		return fmt.Errorf("node name %q: want letters, digits, dots, dashes and underscores, 1 to 253 of them, beginning with a letter or digit", name)
	}
	return nil
}
