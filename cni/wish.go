package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/subnet"
)

// wish is what was asked for: addresses, at most one of each family, and a MAC. The zero wish leaves the choice to us.
type wish struct {
	ips []netip.Addr
	mac subnet.MAC
}

// wishOf reads what runtimeConfig, args.cni and CNI_ARGS ask for; the first that says something of a thing wins.
func wishOf(c conf, environment string, node subnet.NodeFile) (wish, error) {
	env, err := parseArgs(environment)
	if err != nil {
		return wish{}, err
	}
	var w wish
	for _, from := range []struct {
		name string
		asked
	}{{"runtimeConfig", c.RuntimeConfig}, {"args.cni", c.Args.CNI}, {"CNI_ARGS", env}} {
		if len(w.ips) == 0 && c.IPAM.Type == "" { // else that plugin reads what was asked for
			for _, text := range from.IPs {
				ip, err := inside(text, node)
				if err != nil {
					return w, invalid("%s: address %v", from.name, err)
				}
				for _, other := range w.ips {
					if other.Is4() == ip.Is4() {
						return w, invalid("%s: addresses %s and %s: want one of each family", from.name, other, ip)
					}
				}
				w.ips = append(w.ips, ip)
			}
		}
		if w.mac == (subnet.MAC{}) && from.MAC != "" {
			if w.mac, err = subnet.ParseMAC(from.MAC); err != nil || !w.mac.IsUnicast() {
				return w, invalid("%s: MAC %q: want a unicast one such as 02:00:5e:10:00:01", from.name, from.MAC)
			}
		}
	}
	return w, nil
}

// parseArgs reads CNI_ARGS (spec, section "Parameters"). Keys that are not for us are left alone.
func parseArgs(text string) (asked, error) {
	var a asked
	for pair := range strings.SplitSeq(text, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok && strings.TrimSpace(pair) != "" {
			return a, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %q: want KEY=VALUE;KEY=VALUE", pair), "")
		}
		switch strings.TrimSpace(key) {
		case "IP":
			for ip := range strings.SplitSeq(value, ",") {
				if ip = strings.TrimSpace(ip); ip != "" {
					a.IPs = append(a.IPs, ip)
				}
			}
		case "MAC":
			a.MAC = strings.TrimSpace(value)
		}
	}
	return a, nil
}

// inside reads an address, with or without a prefix length, that this host may give to a pod.
func inside(text string, node subnet.NodeFile) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if strings.Contains(text, "/") {
		var p netip.Prefix
		p, err = netip.ParsePrefix(text)
		ip = p.Addr()
	}
	if err != nil {
		return ip, fmt.Errorf("%q: want an IP address", text)
	}
	ip = ip.Unmap()
	for i, s := range node.Subnets {
		if !s.Contains(ip) {
			continue
		}
		if ip == subnet.VTEP(s) || ip == node.Gateways[i] || ip.Is4() && !s.Contains(ip.Next()) {
			return ip, fmt.Errorf("%s is not a pod's: it is the network's own, the gateway's or the broadcast address of %s", ip, s)
		}
		return ip, nil
	}
	return ip, fmt.Errorf("%s is out of range: this host has %v", ip, node.Subnets)
}
