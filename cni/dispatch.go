package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/subnet"
)

// request is what the runtime asks, in its own words (CNI spec, section "Parameters").
type request struct {
	container, netns, ifname, args string
	path                           string // where other plugins lie
	input                          []byte // the network configuration
}

// verb does what a command asks. It prints to out on success only.
type verb func(c conf, out io.Writer) error

// command is a verb with what it needs.
type command struct {
	do    verb
	since string   // version of the spec that has it
	needs []string // variables
}

func commands() map[string]command {
	return map[string]command{
		"ADD":    {add, "0.3.1", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}},
		"DEL":    {del, "0.3.1", []string{"CNI_CONTAINERID", "CNI_IFNAME"}},
		"CHECK":  {check, "0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}},
		"STATUS": {status, "1.1.0", nil},
		"GC":     {collect, "1.1.0", []string{"CNI_PATH"}},
	}
}

// run answers one request and returns the exit code. Whatever happens, out gets one JSON document at most, and exactly one
// with an error.
//
// The library's own way in (pkg/skel) is not taken: it compares CNI_NETNS with the plugin's namespace after the work is done
// and then prints a second document, leaves cniVersion out of errors, and cannot be run in a test.
func run(env func(string) string, in io.Reader, out, complaint io.Writer) int {
	name := env("CNI_COMMAND")
	if name == "" {
		_, _ = fmt.Fprintf(complaint, "CNI plugin overlay %s: attaches containers to the overlayd network\nCNI versions: %s\n",
			release, strings.Join(versions(), ", "))
		return 0
	}
	input, err := io.ReadAll(in)
	switch {
	case name == "VERSION":
		err = printVersion(input, out)
	case err != nil:
		err = types.NewError(types.ErrIOFailure, "read standard input: "+err.Error(), "")
	default:
		err = dispatch(name, env, input, out)
	}
	if err == nil {
		return 0
	}
	if err := fail(input, err, out); err != nil {
		_, _ = fmt.Fprintln(complaint, err)
	}
	return 1
}

func dispatch(name string, env func(string) string, input []byte, out io.Writer) error {
	c, ok := commands()[name]
	if !ok {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND %q: want ADD, DEL, CHECK, GC, STATUS or VERSION", name), "")
	}
	r := request{
		container: env("CNI_CONTAINERID"), netns: env("CNI_NETNS"), ifname: env("CNI_IFNAME"), args: env("CNI_ARGS"), path: env("CNI_PATH"), input: input,
	}
	if err := c.wants(r, env); err != nil {
		return err
	}
	given, err := parseConf(r)
	if err == nil {
		err = c.takes(name, given)
	}
	if err == nil {
		err = given.check()
	}
	if err != nil {
		return err
	}
	return c.do(given, out)
}

// wants says what is wrong with the environment; the words hold the variable's name, as the spec wants it.
func (c command) wants(r request, env func(string) string) error {
	var missing []string
	for _, v := range c.needs {
		if env(v) == "" {
			missing = append(missing, v)
		}
	}
	bad := ""
	switch {
	case len(missing) > 0:
		bad = "missing: " + strings.Join(missing, ", ")
	case !slices.Contains(c.needs, "CNI_IFNAME"): // then neither counts
	case !subnet.IsName(r.container):
		bad = fmt.Sprintf("CNI_CONTAINERID %q: want letters, digits and _ . - behind a letter or digit", r.container)
	case !isDevice(r.ifname):
		bad = fmt.Sprintf("CNI_IFNAME %q: want 1 to 15 bytes without / : or space", r.ifname)
	}
	if bad == "" {
		return nil
	}
	return types.NewError(types.ErrInvalidEnvironmentVariables, bad, "")
}

// takes says what makes the configuration unusable for the command called name.
func (c command) takes(name string, given conf) error {
	if !subnet.IsName(given.Name) {
		return invalid("name %q: want letters, digits and _ . - behind a letter or digit", given.Name)
	}
	// Without a version it is what had none yet.
	asked := cmp.Or(given.CNIVersion, "0.1.0")
	if slices.Index(versions(), asked) < slices.Index(versions(), c.since) { // -1 is less, too
		return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("cniVersion %q does not have %s here", asked, name),
			fmt.Sprintf("%s is known in %q", name, versions()[slices.Index(versions(), c.since):]))
	}
	return nil
}

// isDevice says whether the kernel takes s as the name of a link (net/core/dev.c, dev_valid_name).
func isDevice(s string) bool {
	const most = 15 // IFNAMSIZ - 1
	return s != "" && len(s) <= most && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) })
}

// fail prints the error as the spec wants it, with the version of the configuration.
func fail(input []byte, err error, out io.Writer) error {
	e := &types.Error{Code: types.ErrInternal, Msg: err.Error()}
	var coded *types.Error
	if errors.As(err, &coded) {
		e.Code, e.Msg, e.Details = coded.Code, coded.Msg, coded.Details
		if whole := err.Error(); whole != coded.Error() { // what else went wrong, and where
			e.Details = whole
		}
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{askedVersion(input), e}, "", "  ")
	if err == nil {
		_, err = fmt.Fprintln(out, string(text))
	}
	return err
}

// askedVersion is the version in which the answer is wanted.
func askedVersion(input []byte) string {
	var c struct{ CNIVersion string }
	if json.Unmarshal(input, &c) == nil && slices.Contains(versions(), c.CNIVersion) {
		return c.CNIVersion
	}
	return versions()[len(versions())-1]
}

// printVersion answers VERSION. It looks at nothing but its input.
func printVersion(input []byte, out io.Writer) error {
	return json.NewEncoder(out).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{askedVersion(input), versions()})
}
