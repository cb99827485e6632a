package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

// attachment is one interface of one container in one network.
type attachment struct {
	alias  string // network/container/interface: set as the link's alias, it says that the ADD ended well
	link   string // name of the host's side
	sum    [sha256.Size]byte
	ifname string // of the pod's side

	kernel *netlink.Handle // the host's
}

// newAttachment derives all names from what identifies an attachment (CNI spec, section "Parameters"), so that nothing
// need be stored to find them again.
func newAttachment(network, container, ifname string) attachment {
	sum := sha256.Sum256([]byte(network + "\x00" + container + "\x00" + ifname))
	const digits = unix.IFNAMSIZ - 1 - len("veth") // NetworkManager and udev leave veth* alone
	return attachment{
		alias:  strings.Join([]string{network, container, ifname}, "/"),
		link:   "veth" + hex.EncodeToString(sum[:])[:digits],
		sum:    sum,
		ifname: ifname,
		kernel: &netlink.Handle{}, // a socket a request
	}
}

const maxAlias = 255 // IFALIASZ - 1

// makeLink makes the pair of devices, the pod's side in the pod at once. The rest of an ADD that was cut off is replaced.
func (j *job) makeLink() (netlink.Link, error) {
	err := j.makeVeth()
	if errors.Is(err, unix.EEXIST) {
		if err = j.clear(); err != nil {
			return nil, err
		}
		err = j.makeVeth()
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		if l, lookup := j.kernel.LinkByName(j.link); lookup == nil {
			return nil, fmt.Errorf("the %s device %s has the name %s: remove it", l.Type(), l.Attrs().Name, j.link)
		}
		return nil, fmt.Errorf("%s already has an interface %s", j.pod.path, j.ifname)
	case err != nil:
		return nil, errors.Join(fmt.Errorf("make %s: %w", j.link, err), j.clear())
	}
	l, err := j.kernel.LinkByName(j.link)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", j.link, errors.Join(err, j.clear()))
	}
	return l, nil
}

// makeVeth makes the pair, the host's side as a port of the bridge and down. The netlink package takes two messages for that.
func (j *job) makeVeth() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	mtu := nl.Uint32Attr(uint32(j.mtu))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize())
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(j.ifname))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(j.pod.file.Fd())))
	for _, part := range []nl.NetlinkRequestData{
		nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(j.link)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{0x0e, j.sum[0], j.sum[1], j.sum[2], j.sum[3], j.sum[4]}), // given now, udev leaves it alone
		nl.NewRtAttr(unix.IFLA_MTU, mtu),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(j.bridge.Attrs().Index))),
		info,
	} {
		req.AddData(part)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// clear removes the half of an earlier ADD. One that ended well stays, and is an error.
func (a attachment) clear() error {
	l, err := a.find()
	if err != nil || l == nil {
		return err
	}
	switch l.Attrs().Alias {
	case "":
		return removed(a.kernel.LinkDel(l))
	case a.alias:
		return types.NewError(codeAttached, fmt.Sprintf("%s is attached already, as %s", a.alias, a.link), "")
	}
	return fmt.Errorf("%s is the attachment of %s: two of them have one hash", a.link, l.Attrs().Alias)
}

// find returns the host's side, nil when there is none. Only a veth can be one.
func (a attachment) find() (netlink.Link, error) {
	l, err := a.kernel.LinkByName(a.link)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, nil //nolint:nilnil // "none" is an answer
	case err != nil:
		return nil, fmt.Errorf("look for %s: %w", a.link, err)
	case l.Type() != "veth" || l.Attrs().Name != a.link:
		return nil, nil //nolint:nilnil // somebody else's
	}
	return l, nil
}

// detach removes the attachment, and with the link its name and its address. What is not provably ours stays.
func (a attachment) detach() error {
	l, err := a.find()
	if err != nil || l == nil {
		return err
	}
	if alias := l.Attrs().Alias; alias != "" && alias != a.alias {
		return nil
	}
	return removed(a.kernel.LinkDel(l))
}

// removed is the outcome of a removal: what was gone before is no error.
func removed(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// claim gives the link its addresses: alternative names that spell them. Names are unique in the kernel, so of two plugins
// that want one address one is told that it exists. Given addresses are claimed as they are, then those asked for; for the
// other families the search begins at a place of this container's own, so that an address just freed is not the next one
// given.
func (j *job) claim(l netlink.Link, given []address) ([]address, error) {
	var all []address
	for _, a := range given {
		if err := j.claimOne(l, a.ip); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	if len(given) > 0 {
		return all, nil
	}
	var open []int // subnets in which nothing was asked for
	asked := map[int]netip.Addr{}
	for i, s := range j.node.Subnets {
		for _, ip := range j.wish.ips {
			if s.Contains(ip) {
				asked[i] = ip
			}
		}
		if !asked[i].IsValid() {
			open = append(open, i)
		} else if err := j.claimOne(l, asked[i]); err != nil {
			return nil, err
		}
	}
	found, err := j.search(l, open)
	if err != nil {
		return nil, err
	}
	for i, s := range j.node.Subnets {
		ip := asked[i]
		if !ip.IsValid() {
			ip = subnet.Addr(s, found)
		}
		all = append(all, address{ip: ip, prefix: s, gateway: j.node.Gateways[i]})
	}
	return all, nil
}

// claimOne claims an address that it must be. The error names its holder.
func (a attachment) claimOne(l netlink.Link, ip netip.Addr) error {
	err := a.kernel.LinkAddAltName(l, subnet.AltName(ip))
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	holder := "somebody"
	if other, lookup := a.kernel.LinkByName(subnet.AltName(ip)); lookup == nil {
		holder = other.Attrs().Name
		if alias := other.Attrs().Alias; alias != "" {
			holder = alias
		}
	}
	return types.NewError(codeTaken, fmt.Sprintf("address %s is taken by %s", ip, holder), "")
}

// search claims an address with one offset in each of the subnets with the given numbers, and returns the offset.
func (j *job) search(l netlink.Link, numbers []int) (uint64, error) {
	var subnets []netip.Prefix
	for _, i := range numbers {
		subnets = append(subnets, j.node.Subnets[i])
	}
	if len(subnets) == 0 {
		return 0, nil
	}
	count := subnet.Room(subnets)
	start := binary.BigEndian.Uint64(j.sum[16:]) % count
	for i := range count {
		offset := subnet.FirstPod + (start+i)%count
		if err := j.claimAll(l, subnets, offset); !errors.Is(err, unix.EEXIST) {
			return offset, err
		}
	}
	return 0, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no free address: all %d of %v are in use", count, subnets), "see: overlayd pods")
}

// claimAll claims the address with the given offset in every subnet, or none.
func (a attachment) claimAll(l netlink.Link, subnets []netip.Prefix, offset uint64) error {
	var claimed []netip.Addr
	for _, s := range subnets {
		addr := subnet.Addr(s, offset)
		if err := a.kernel.LinkAddAltName(l, subnet.AltName(addr)); err != nil {
			for _, c := range claimed {
				err = errors.Join(err, a.kernel.LinkDelAltName(l, subnet.AltName(c)))
			}
			return fmt.Errorf("claim %s: %w", addr, err)
		}
		claimed = append(claimed, addr)
	}
	return nil
}
