package kernel

import (
	"context"
	"maps"
	"time"
)

// knobsEvery is how often knobs are looked at of which the kernel tells nobody when they are turned: it does for
// forwarding and rp_filter (RTNLGRP_*_NETCONF), not for redirects, router advertisements and duplicate addresses.
const knobsEvery = 400 * time.Millisecond

// WatchKnobs calls kick when a knob that a plan may want has another value than when last looked at, until the context
// ends, and returns its error. It reads about twenty short files each time, and sees the network namespace of the calling
// thread. uplink tells the name of the uplink, which may change; empty while there is none.
func WatchKnobs(ctx context.Context, o Options, uplink func() string, kick func()) error {
	last := map[string]string{}
	for {
		values := map[string]string{}
		for _, name := range knobNames(o, uplink()) {
			values[name] = sysctl(name)
		}
		if !maps.Equal(values, last) {
			kick()
		}
		last = values
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(knobsEvery):
		}
	}
}

// knobNames are the knobs that a plan may want; uplink may be empty.
func knobNames(o Options, uplink string) []string {
	names := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
	knobs := func(dev, family string, all ...string) {
		for _, knob := range all {
			if dev != "" {
				names = append(names, "net/"+family+"/conf/"+dev+"/"+knob)
			}
		}
	}
	for _, dev := range []string{o.VXLAN, o.Bridge} {
		knobs(dev, "ipv4", "forwarding", "accept_redirects")
		knobs(dev, "ipv6", "disable_ipv6", "forwarding", "accept_ra", "accept_redirects", "accept_dad")
	}
	knobs(o.VXLAN, "ipv4", "rp_filter")
	knobs(uplink, "ipv4", "forwarding")
	knobs(uplink, "ipv6", "accept_ra")
	return names
}
