package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
)

var errForeign = errors.New("not overlayd's")

// kindOf is the kind of our device of that name, "" if none of ours has it.
func (k *Kernel) kindOf(name string) string {
	switch name {
	case "":
	case k.options.VXLAN:
		return "vxlan"
	case k.options.Bridge:
		return "bridge"
	}
	return ""
}

// knob turns one, but not of a device that is somebody else's.
func (k *Kernel) knob(s backend.Sysctl) error {
	for _, dev := range []string{k.options.VXLAN, k.options.Bridge} {
		if dev == "" || !strings.Contains(s.Name, "/conf/"+dev+"/") {
			continue
		}
		if _, err := k.link(dev); err != nil {
			return err
		}
	}
	return writeSysctl(s)
}

// renamed finds a device of ours that somebody gave another name: nobody else has its MAC, which is computed. Another
// beside it could not be made (VXLAN), or would be without the pods (the bridge).
func (k *Kernel) renamed(mac subnet.MAC, kind func(netlink.Link) bool) netlink.Link {
	links, err := k.links.LinkList()
	if err != nil {
		return nil // making the device goes on
	}
	for _, l := range links {
		if macOf(l.Attrs().HardwareAddr) == mac && kind(l) {
			return l
		}
	}
	return nil
}

// rename gives a device its name back, alive where the kernel can (Linux 6.2).
func (k *Kernel) rename(l netlink.Link, name string) error {
	err := k.links.LinkSetName(l, name)
	if errors.Is(err, unix.EBUSY) {
		if err := k.links.LinkSetDown(l); err != nil {
			return err
		}
		err = k.links.LinkSetName(l, name)
	}
	if err != nil {
		return fmt.Errorf("give %s its name back: %w", l.Attrs().Name, err)
	}
	return nil
}
