// Package kernel is the real machine behind [backend.Kernel]: it reads and writes the tables of the network namespace that
// it was opened in, by netlink and /proc/sys/net. It needs CAP_NET_ADMIN to write and Linux 5.10 or newer.
package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
)

// Options says which machine to see.
type Options struct {
	Node   string
	VXLAN  string // name of the VXLAN device; empty: one that has the default name of its VNI
	Bridge string // name of the bridge; empty: none is ours
	Choice backend.Choice

	Guard      backend.Guard  // empty: full
	Masquerade bool           // pods' packets to outside the network
	Exclude    []netip.Prefix // except to these; none overlaps another
	Untracked  bool           // do not track connections inside the network
	AntiSpoof  bool

	Ear      *Ear // is shut while very many rows are made
	NoUplink bool // do not look for an uplink: for those who only look at pods or only remove
}

// Kernel implements [backend.Kernel]. Not for concurrent use.
type Kernel struct {
	options Options
	links   *netlink.Handle
	rows    *conn
	nft     *conn
	rules   *nftables.Conn            // reads rules
	halves  map[int]time.Time         // when links of attachments that have not ended were first seen, by index
	filters map[string]backend.Filter // of our tables by family, as last read: which sets to look for when nothing there says it
	counted map[string]counted        // as last read: what is removed by others and made again goes on counting
	around  surroundings              // as last read, while nobody changed it
	size    int                       // rows of the last reading: the next will have about as many
}

var _ backend.Kernel = (*Kernel)(nil)

// Open connects to the kernel of the calling thread's network namespace. The caller closes it.
func Open(o Options) (*Kernel, error) {
	if err := checkRelease(); err != nil {
		return nil, err
	}
	if o.Guard == "" {
		o.Guard = backend.GuardFull
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	rows, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		links.Close()
		return nil, err
	}
	k := &Kernel{options: o, links: links, rows: rows, counted: map[string]counted{}, filters: map[string]backend.Filter{}}
	if k.nft, err = dial(unix.NETLINK_NETFILTER); err == nil {
		k.rules, err = nftables.New(nftables.AsLasting())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nf_tables: %w", err), k.Close())
	}
	return k, nil
}

// Close frees the sockets.
func (k *Kernel) Close() error {
	k.links.Close()
	err := k.rows.close()
	if k.nft != nil {
		err = errors.Join(err, k.nft.close())
	}
	if k.rules != nil {
		err = errors.Join(err, k.rules.CloseLasting())
	}
	return err
}

// The oldest Linux with all we use: alternative names of links (5.5), nexthop objects (5.3) and their replacement without
// loss (5.10).
const oldestMajor, oldestMinor = 5, 10

func checkRelease() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("uname: release %q: %w", release, err)
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return fmt.Errorf("linux %s: overlayd needs %d.%d or newer", release, oldestMajor, oldestMinor)
	}
	return nil
}

// retries bounds how often a read is begun anew because the tables changed meanwhile.
const retries = 5

// Read implements [backend.Kernel].
func (k *Kernel) Read() (backend.Host, backend.State, error) {
	var h backend.Host
	var s backend.State
	var err error
	for range retries {
		h, s, err = k.read()
		if !errors.Is(err, errInterrupted) && !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return h, nil, fmt.Errorf("read the kernel: %w", err)
	}
	return h, s, nil
}

func (k *Kernel) read() (backend.Host, backend.State, error) {
	o := k.options
	h := backend.Host{Node: o.Node, VXLAN: o.VXLAN, Bridge: o.Bridge, IPv6: hasIPv6(), Guard: o.Guard, Masquerade: o.Masquerade, Exclude: o.Exclude, Untracked: o.Untracked, AntiSpoof: o.AntiSpoof}
	links, err := k.links.LinkList()
	if err != nil {
		return h, nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := k.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return h, nil, fmt.Errorf("list addresses: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	o.VXLAN = vxlanName(o.VXLAN, links)
	h.VXLAN = o.VXLAN
	m := machine{options: o, links: links, addrs: addrs, names: names, rows: k.rows}
	s := make(backend.State, k.size)
	m.devices(s)
	if err := k.readRows(m, s); err != nil {
		return h, nil, err
	}
	if err := k.readFilter(m, &h, s); err != nil {
		return h, nil, err
	}
	if h.Pods, err = m.pods(s); err != nil {
		return h, nil, err
	}
	k.readHalves(m, s)
	k.size = len(s)
	h.Connected = m.connected()
	if !o.NoUplink {
		h.Uplink, h.Gateways, err = k.uplink(m)
	}
	if err == nil && !o.NoUplink {
		err = k.readPaths(m, &h)
	}
	m.readSysctls(h.Uplink.Name, s)
	h.Uplink.AcceptRA = sysctl("net/ipv6/conf/" + h.Uplink.Name + "/accept_ra")
	return h, s, err
}

// Detach removes the links of pods, and with them their addresses. Those that are gone are no error.
func (k *Kernel) Detach(pods []backend.Pod) error {
	var errs []error
	for _, p := range pods {
		l, err := k.link(p.Link)
		if err == nil {
			err = k.links.LinkDel(l)
		}
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove %s: %w", p.Link, err))
		}
	}
	return errors.Join(errs...)
}
