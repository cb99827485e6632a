package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
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
	}
}

const maxAlias = 255 // IFALIASZ - 1

// makeLink makes the pair of devices, the pod's side in the pod at once. The rest of an ADD that was cut off is replaced.
func (j *job) makeLink() error {
	err := j.makeVeth()
	if errors.Is(err, unix.EEXIST) {
		if err = j.clear(j.kernel); err != nil {
			return err
		}
		err = j.makeVeth()
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		if l, lookup := j.kernel.find(j.link, unix.IFLA_IFNAME); lookup == nil {
			return fmt.Errorf("the %s device %s has the name %s: remove it", l.kind, l.name, j.link)
		}
		return fmt.Errorf("%s already has an interface %s", j.pod.path, j.ifname)
	case err != nil:
		return errors.Join(err, j.clear(j.kernel))
	}
	// From here on the link is known by its number: a second ADD may have put another in its place.
	l, err := j.kernel.find(j.link, unix.IFLA_IFNAME)
	if err != nil {
		return errors.Join(err, j.clear(j.kernel))
	}
	j.index = l.index
	return nil
}

// hostMAC is given when the link is made: then udev leaves it alone.
func (j *job) hostMAC() subnet.MAC {
	return subnet.MAC{0x0e, j.sum[0], j.sum[1], j.sum[2], j.sum[3], j.sum[4]}
}

// makeVeth makes the pair, the host's side as a port of the bridge and down. Asked for one queue the kernel makes one; else as
// many as it has processors, of which it takes all but one down again (drivers/net/veth.c, veth_init_queues).
func (j *job) makeVeth() error {
	mtu, one := nl.Uint32Attr(uint32(j.mtu)), nl.Uint32Attr(1)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize())
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(j.ifname))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(j.pod.fd)))
	return j.kernel.do(step{"make " + j.link, about(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(j.link)), macAttr(j.hostMAC()), nl.NewRtAttr(unix.IFLA_MTU, mtu), nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, one), nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, one),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(j.bridge.index))), info)})
}

// clear removes the half of an earlier ADD. One that ended well stays, and is an error.
func (a attachment) clear(kernel *conn) error {
	l, err := a.find(kernel)
	if err != nil || l == nil {
		return err
	}
	switch l.alias {
	case "":
		return remove(kernel, *l)
	case a.alias:
		return types.NewError(codeAttached, fmt.Sprintf("%s is attached already, as %s", a.alias, a.link), "")
	}
	return fmt.Errorf("%s is the attachment of %s: two of them have one hash", a.link, l.alias)
}

// find returns the host's side, nil when there is none. Only a veth can be one.
func (a attachment) find(kernel *conn) (*link, error) {
	l, err := kernel.find(a.link, unix.IFLA_IFNAME)
	switch {
	case errors.Is(err, errNoLink):
		return nil, nil //nolint:nilnil // "none" is an answer
	case err != nil:
		return nil, err
	case l.kind != "veth" || l.name != a.link:
		return nil, nil //nolint:nilnil // somebody else's
	}
	return &l, nil
}

// detach removes the attachment, and with the link its name and its address. What is not provably ours stays.
func (a attachment) detach(kernel *conn) error {
	l, err := a.find(kernel)
	if err != nil || l == nil {
		return err
	}
	if l.alias != "" && l.alias != a.alias {
		return nil
	}
	return remove(kernel, *l)
}

// remove takes a link away, and the other end with it.
func remove(kernel *conn, l link) error {
	return removed(kernel.do(step{"remove " + l.name, about(unix.RTM_DELLINK, 0, l.index)}))
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
func (j *job) claim(given []address) ([]address, error) {
	var all []address
	for _, a := range given {
		if err := j.claimOne(a.ip); err != nil {
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
		} else if err := j.claimOne(asked[i]); err != nil {
			return nil, err
		}
	}
	found, err := j.search(open)
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
func (j *job) claimOne(ip netip.Addr) error {
	err := j.claimAll([]netip.Addr{ip})
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	holder := "somebody"
	if other, lookup := j.kernel.find(subnet.AltName(ip), unix.IFLA_ALT_IFNAME); lookup == nil {
		holder = cmp.Or(other.alias, other.name)
	}
	return types.NewError(codeTaken, fmt.Sprintf("address %s is taken by %s", ip, holder), "")
}

// search claims an address with one offset in each of the subnets with the given numbers, and returns the offset.
func (j *job) search(numbers []int) (uint64, error) {
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
		var addrs []netip.Addr
		for _, s := range subnets {
			addrs = append(addrs, subnet.Addr(s, offset))
		}
		if err := j.claimAll(addrs); !errors.Is(err, unix.EEXIST) {
			return offset, err
		}
	}
	return 0, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no free address: all %d of %v are in use", count, subnets), "see: overlayd pods")
}

// claimAll claims all addresses, or none.
func (j *job) claimAll(addrs []netip.Addr) error {
	for i, a := range addrs {
		err := j.kernel.do(step{"claim " + a.String(), about(unix.RTM_NEWLINKPROP, 0, j.index, altNameAttr(subnet.AltName(a)))})
		if err == nil {
			continue
		}
		for _, c := range addrs[:i] {
			err = errors.Join(err, j.kernel.do(step{"give back " + c.String(), about(unix.RTM_DELLINKPROP, 0, j.index, altNameAttr(subnet.AltName(c)))}))
		}
		return err
	}
	return nil
}
