package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Iface is a network device that could be the uplink.
type Iface struct {
	Name    string
	Up      bool
	MTU     int            // bytes
	Addrs   []netip.Prefix // with host bits, in the kernel's order; no link-local ones
	Default bool           // the best default route leads through it
	Reaches netip.Addr     // it is the way to Choice.CanReach, and this is the source address on that way
}

// Choice is how the admin picks the uplink. The zero Choice takes the device of the default route.
type Choice struct {
	Ifaces   []string   // each a name, an address or a regular expression for the whole name; the first that matches wins
	CanReach netip.Addr // the device through which this address is reached
	PublicIP netip.Addr // when valid, the source address is of the same family
}

// ErrUplink says that no device can be the uplink; the text says what was looked for and what there is.
var ErrUplink = errors.New("no uplink")

// Uplink picks one of ifaces. The error is [ErrUplink].
func (c Choice) Uplink(ifaces []Iface) (Uplink, error) {
	if c.CanReach.IsValid() {
		for _, i := range ifaces {
			if i.Reaches.IsValid() {
				return c.on(i, i.Reaches)
			}
		}
		return Uplink{}, fmt.Errorf("%w: no route to --iface-can-reach %s: add one or name the device with --iface", ErrUplink, c.CanReach)
	}
	for _, want := range c.Ifaces {
		for _, i := range ifaces {
			if addr, ok := i.matches(want); ok {
				return c.on(i, addr)
			}
		}
	}
	if len(c.Ifaces) > 0 {
		return Uplink{}, fmt.Errorf("%w: --iface %s matches none of %s", ErrUplink, strings.Join(c.Ifaces, ", "), names(ifaces))
	}
	for _, i := range ifaces {
		if i.Default {
			return c.on(i, netip.Addr{})
		}
	}
	return Uplink{}, fmt.Errorf("%w: there is no default route: name the device with --iface, one of %s", ErrUplink, names(ifaces))
}

// matches says whether the device is the one wanted, and which of its addresses if that was said.
func (i Iface) matches(want string) (netip.Addr, bool) {
	if i.Name == want {
		return netip.Addr{}, true
	}
	if addr, err := netip.ParseAddr(want); err == nil {
		for _, p := range i.Addrs {
			if p.Addr() == addr {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	re, err := regexp.Compile("^(?:" + want + ")$")
	return netip.Addr{}, err == nil && re.MatchString(i.Name)
}

func (c Choice) on(i Iface, addr netip.Addr) (Uplink, error) {
	u := Uplink{Name: i.Name, Addr: addr, MTU: i.MTU, Down: !i.Up}
	for _, p := range i.Addrs {
		u.OnLink = append(u.OnLink, p.Masked())
		if !u.Addr.IsValid() && c.fits(p.Addr()) {
			u.Addr = p.Addr()
		}
	}
	if addr.IsValid() && c.PublicIP.IsValid() && !c.fits(addr) {
		return u, fmt.Errorf("%w: packets from %s (%s) cannot come from the public address %s: it is of the other family", ErrUplink, addr, i.Name, c.PublicIP)
	}
	if !u.Addr.IsValid() { // no IPv4 address: IPv6 will do
		for _, p := range i.Addrs {
			if !c.PublicIP.IsValid() {
				u.Addr = p.Addr()
				break
			}
		}
	}
	if !u.Addr.IsValid() {
		return u, fmt.Errorf("%w: %s has no usable address (it has %s): give it one, or name another device with --iface", ErrUplink, i.Name, addrs(i))
	}
	return u, nil
}

// fits says whether a is of the family to be preferred: the public address's, else IPv4.
func (c Choice) fits(a netip.Addr) bool {
	if c.PublicIP.IsValid() {
		return a.Is4() == c.PublicIP.Is4()
	}
	return a.Is4()
}

func addrs(i Iface) string {
	if len(i.Addrs) == 0 {
		return "none"
	}
	words := make([]string, len(i.Addrs))
	for n, p := range i.Addrs {
		words[n] = p.String()
	}
	return strings.Join(words, " ")
}

func names(ifaces []Iface) string {
	if len(ifaces) == 0 {
		return "no device at all"
	}
	words := make([]string, len(ifaces))
	for n, i := range ifaces {
		words[n] = fmt.Sprintf("%s (%s)", i.Name, addrs(i))
	}
	return strings.Join(words, ", ")
}
