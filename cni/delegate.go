package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/subnet"
)

// IPAM plugins that want to be told of which subnets to give addresses.
const (
	hostLocal   = "host-local"
	whereabouts = "whereabouts"
)

// ipamAdd asks the plugin that "ipam" names for addresses, routes and resolvers; none without one. If that fails, the
// caller calls its DEL (CNI spec, section "Delegated plugin execution procedure").
func (c conf) ipamAdd(node subnet.NodeFile) (all []address, routes []*types.Route, dns types.DNS, err error) {
	if c.IPAM.Type == "" {
		return nil, nil, dns, nil
	}
	text, err := c.withRanges(c.request.input, node.Subnets)
	if err != nil {
		return nil, nil, dns, err
	}
	result, err := c.execADD(c.IPAM.Type, text)
	if err == nil && len(result.IPs) == 0 {
		err = errors.New("it gave no address")
	}
	if err != nil {
		return nil, nil, dns, fmt.Errorf("ipam %s: %w", c.IPAM.Type, err)
	}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		ones, _ := ip.Address.Mask.Size()
		a := address{ip: addr.Unmap(), prefix: netip.PrefixFrom(addr.Unmap(), ones).Masked()}
		gw := ip.Gateway
		if gw == nil && sharesSubnet(node, a.ip) {
			gw = gateway(node, ip.Address.IP)
		}
		if g, ok := netip.AddrFromSlice(gw); ok {
			a.gateway = g.Unmap()
		}
		all = append(all, a)
	}
	for _, r := range result.Routes {
		if r.GW == nil {
			r.GW = gateway(node, r.Dst.IP)
		}
	}
	return all, notDefault(result.Routes), result.DNS, nil
}

func sharesSubnet(node subnet.NodeFile, ip netip.Addr) bool {
	for _, s := range node.Subnets {
		if s.Contains(ip) {
			return true
		}
	}
	return false
}

// notDefault leaves default routes out: isDefaultGateway says whether there is one.
func notDefault(routes []*types.Route) []*types.Route {
	var rest []*types.Route
	for _, r := range routes {
		if ones, _ := r.Dst.Mask.Size(); ones > 0 {
			rest = append(rest, r)
		}
	}
	return rest
}

// ipam calls another verb of the plugin that "ipam" names. It needs no node file: what was given out is found by the
// container.
func (c conf) ipam(verb string) error {
	if c.IPAM.Type == "" {
		return nil
	}
	text, err := c.withRanges(c.request.input, c.anyNode().Subnets)
	if err == nil {
		_, err = c.exec(verb, c.IPAM.Type, text)
	}
	if err != nil {
		return fmt.Errorf("ipam %s: %w", c.IPAM.Type, err)
	}
	return nil
}

// anyNode is this host's node file; without one a placeholder, for plugins that want some range to read their own files.
func (c conf) anyNode() subnet.NodeFile {
	if node, err := readNode(c.NodeFile); err == nil {
		return node
	}
	some := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	return subnet.NodeFile{Networks: some, Subnets: some}
}

// withRanges gives an IPAM plugin our subnets in its own words, unless the admin has said which: host-local has ranges,
// whereabouts ipRanges.
func (c conf) withRanges(text []byte, subnets []netip.Prefix) ([]byte, error) {
	var whole map[string]any
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, err
	}
	ipam, ok := whole["ipam"].(map[string]any)
	if !ok {
		return text, nil
	}
	said := func(keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { return ipam[key] != nil })
	}
	switch {
	case ipam["type"] == hostLocal && !said("subnet", "ranges"):
		ipam["ranges"] = ranges(subnets)
	case ipam["type"] == whereabouts && !said("range", "ipRanges"):
		var all []map[string]string
		for _, s := range subnets {
			all = append(all, map[string]string{"range": s.String(), "range_start": subnet.Addr(s, subnet.FirstPod).String()})
		}
		ipam["ipRanges"] = all
	default:
		return text, nil
	}
	return json.Marshal(whole)
}

func ranges(subnets []netip.Prefix) [][]map[string]string {
	var all [][]map[string]string
	for _, s := range subnets {
		all = append(all, []map[string]string{{
			"subnet": s.String(), "gateway": subnet.Gateway(s).String(), "rangeStart": subnet.Addr(s, subnet.FirstPod).String(),
		}})
	}
	return all
}

// delegation is the configuration for the plugin that attaches the pod in our place, with what flannel's plugin adds: our
// subnets, a route to the network, the MTU, and that the daemon masquerades.
func (c conf) delegation(node subnet.NodeFile) (plugin string, text []byte, err error) {
	d := maps.Clone(c.Delegate)
	preset := func(key string, value any) {
		if _, said := d[key]; !said {
			d[key] = value
		}
	}
	preset("type", "bridge")
	plugin, ok := d["type"].(string)
	if !ok {
		return "", nil, invalid("delegate: type: want the name of a plugin")
	}
	d["name"], d["cniVersion"] = c.Name, c.CNIVersion
	if plugin == "bridge" {
		preset("isGateway", true)
	}
	preset("ipMasq", false)
	if mtu := c.mtu(node); mtu > 0 {
		preset("mtu", mtu)
	}
	ipam, _ := d["ipam"].(map[string]any)
	ipam = maps.Clone(ipam)
	if ipam == nil {
		ipam = map[string]any{}
	}
	if _, said := ipam["type"]; !said {
		ipam["type"] = hostLocal
	}
	if ipam["type"] == hostLocal {
		routes, _ := ipam["routes"].([]any)
		for _, n := range node.Networks {
			routes = append(routes, map[string]string{"dst": n.String()})
		}
		ipam["ranges"], ipam["routes"] = ranges(node.Subnets), routes
	}
	d["ipam"] = ipam
	var given map[string]any
	if err := json.Unmarshal(c.request.input, &given); err != nil {
		return "", nil, err
	}
	for _, key := range []string{"runtimeConfig", "prevResult", "args", "cni.dev/valid-attachments"} {
		if v, ok := given[key]; ok {
			d[key] = v
		}
	}
	text, err = json.Marshal(d)
	return plugin, text, err
}

func (c conf) delegateAdd(node subnet.NodeFile, out io.Writer) error {
	plugin, text, err := c.delegation(node)
	if err != nil {
		return err
	}
	result, err := c.execADD(plugin, text)
	if err == nil {
		err = printResult(result, c.CNIVersion, out)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("delegate %s: %w", plugin, err), c.delegateOther("DEL"))
	}
	return nil
}

// delegateOther calls another verb of the delegate.
func (c conf) delegateOther(verb string) error {
	plugin, text, err := c.delegation(c.anyNode())
	if err != nil {
		return err
	}
	if _, err := c.exec(verb, plugin, text); err != nil {
		return fmt.Errorf("delegate %s: %w", plugin, err)
	}
	return nil
}
