package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// asking is what somebody asks for, in the three places where it can be said.
type asking struct{ config, args, env string }

func (a asking) call(h *host, c call) call {
	more := ""
	if a.config != "" {
		more += `,"runtimeConfig":` + a.config
	}
	if a.args != "" {
		more += `,"args":{"cni":` + a.args + `}`
	}
	c.conf = h.conf("1.0.0", "net", more)
	return c.with("CNI_ARGS", a.env)
}

func TestWishesAreGranted(t *testing.T) {
	h := newHost(t, "10.5.1.0/24", "fd00:5:1::/64")
	for name, test := range map[string]struct {
		asking
		want string // addresses, * for one that is chosen, and the MAC
	}{
		"one":                         {asking{config: `{"ips":["10.5.1.7"]}`}, "10.5.1.7 * *"},
		"with a length":               {asking{config: `{"ips":["10.5.1.7/24"]}`}, "10.5.1.7 * *"},
		"the other family":            {asking{config: `{"ips":["fd00:5:1::99/64"]}`}, "* fd00:5:1::99 *"},
		"both":                        {asking{config: `{"ips":["fd00:5:1::99","10.5.1.7"]}`}, "10.5.1.7 fd00:5:1::99 *"},
		"mapped":                      {asking{config: `{"ips":["::ffff:10.5.1.7"]}`}, "10.5.1.7 * *"},
		"the last of IPv6":            {asking{config: `{"ips":["fd00:5:1::ffff:ffff:ffff:ffff"]}`}, "* fd00:5:1:0:ffff:ffff:ffff:ffff *"},
		"the first":                   {asking{config: `{"ips":["10.5.1.2"]}`}, "10.5.1.2 * *"},
		"the last":                    {asking{config: `{"ips":["10.5.1.254"]}`}, "10.5.1.254 * *"},
		"a MAC":                       {asking{config: `{"mac":"02:00:5E:10:00:01"}`}, "* * 02:00:5e:10:00:01"},
		"args.cni":                    {asking{args: `{"ips":["10.5.1.8"],"mac":"02:00:5e:10:00:02"}`}, "10.5.1.8 * 02:00:5e:10:00:02"},
		"CNI_ARGS":                    {asking{env: "IP=10.5.1.9;MAC=02:00:5e:10:00:03"}, "10.5.1.9 * 02:00:5e:10:00:03"},
		"CNI_ARGS with two":           {asking{env: "IP=10.5.1.9, fd00:5:1::9"}, "10.5.1.9 fd00:5:1::9 *"},
		"precedence":                  {asking{`{"ips":["10.5.1.7"]}`, `{"ips":["10.5.1.8"]}`, "IP=10.5.1.9"}, "10.5.1.7 * *"},
		"precedence is of each thing": {asking{`{"mac":"02:00:5e:10:00:01"}`, `{"ips":["10.5.1.8"],"mac":"02:00:5e:10:00:02"}`, "IP=10.5.1.9"}, "10.5.1.8 * 02:00:5e:10:00:01"},
		"a lesser word is not looked at": {asking{`{"ips":["10.5.1.7"],"mac":"02:00:5e:10:00:01"}`, `{"ips":["192.0.2.1"],"mac":"x"}`,
			"IP=x;MAC=x"}, "10.5.1.7 * 02:00:5e:10:00:01"},
		"Go's case":  {asking{config: `{"IPs":["10.5.1.7"],"MAC":"02:00:5e:10:00:01"}`}, "10.5.1.7 * 02:00:5e:10:00:01"},
		"empty ones": {asking{`{"ips":[],"mac":""}`, `{"ips":null}`, "IP=;MAC=;"}, "* * *"},
		"nothing":    {asking{}, "* * *"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newSpace(t)
			r := h.attach(t, test.call(h, h.add("c1", pod)))
			want := strings.Fields(test.want)
			for i, got := range []string{addrs(r)[0].String(), addrs(r)[1].String(), r.Interfaces[2].Mac} {
				if want[i] != "*" {
					same(t, "what was asked for", got, want[i])
				}
			}
			if got := text(t, pod); !strings.Contains(got, r.Interfaces[2].Mac) || !strings.Contains(got, addrs(r)[0].String()+"/24") || !strings.Contains(got, addrs(r)[1].String()+"/64") {
				t.Errorf("the pod is\n%s\nwant what its result says: %v", got, r)
			}
			h.do(t, h.del("c1", pod))
		})
	}
}

func TestWishesThatCannotBeGranted(t *testing.T) {
	h := newHost(t, "10.5.1.0/24", "fd00:5:1::/64")
	before := text(t, h.Netns)
	const bad = types.ErrInvalidNetworkConfig
	for name, test := range map[string]struct {
		asking
		code uint
		says string
	}{
		"the network's address":      {asking{config: `{"ips":["10.5.1.0/24"]}`}, bad, "10.5.1.0"},
		"the gateway's":              {asking{config: `{"ips":["10.5.1.1"]}`}, bad, "10.5.1.1"},
		"the broadcast address":      {asking{config: `{"ips":["10.5.1.255"]}`}, bad, "10.5.1.255"},
		"the network's, IPv6":        {asking{config: `{"ips":["fd00:5:1::"]}`}, bad, "fd00:5:1::"},
		"the gateway's, IPv6":        {asking{config: `{"ips":["fd00:5:1::1"]}`}, bad, "fd00:5:1::1"},
		"out of range":               {asking{config: `{"ips":["10.5.2.2"]}`}, bad, "out of range"},
		"out of range in args.cni":   {asking{args: `{"ips":["192.0.2.7"]}`}, bad, "args.cni"},
		"out of range in CNI_ARGS":   {asking{env: "IP=192.0.2.7"}, bad, "CNI_ARGS"},
		"two of one family":          {asking{config: `{"ips":["10.5.1.7","10.5.1.8"]}`}, bad, "one of each family"},
		"no address":                 {asking{config: `{"ips":["pod-7"]}`}, bad, "pod-7"},
		"a MAC of a group":           {asking{config: `{"mac":"01:00:5e:10:00:01"}`}, bad, "01:00:5e:10:00:01"},
		"the MAC of nobody":          {asking{config: `{"mac":"00:00:00:00:00:00"}`}, bad, "00:00:00:00:00:00"},
		"no MAC":                     {asking{env: "MAC=abc"}, bad, "abc"},
		"CNI_ARGS without a value":   {asking{env: "IgnoreUnknown=1;IP"}, types.ErrInvalidEnvironmentVariables, "IP"},
		"ips that are no list":       {asking{config: `{"ips":"10.5.1.7"}`}, types.ErrDecodingFailure, "ips"},
		"an address with a bad zone": {asking{config: `{"ips":["fd00:5:1::9%eth0"]}`}, bad, "fd00:5:1::9%eth0"},
		"a bad length":               {asking{config: `{"ips":["10.5.1.7/x"]}`}, bad, "10.5.1.7/x"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newSpace(t)
			h.refuse(t, test.call(h, h.add("c1", pod)), test.code, test.says)
			same(t, "the host", text(t, h.Netns), before)
			same(t, "the pod", text(t, pod), "")
		})
	}
}

func TestATakenAddressNamesItsHolder(t *testing.T) {
	h, one, two := newHost(t, "10.5.1.0/24", "fd00:5:1::/64"), newSpace(t), newSpace(t)
	for _, ip := range []string{"10.5.1.7", "fd00:5:1::7"} {
		wish := asking{env: "IP=" + ip}
		h.do(t, wish.call(h, h.add("c1", one)))
		before := text(t, h.Netns)
		h.refuse(t, wish.call(h, h.add("c2", two)), codeTaken, ip, "net/c1/eth0")
		same(t, "the host", text(t, h.Netns), before)
		same(t, "the pod", text(t, two), "")
		h.do(t, h.del("c1", one))
		h.do(t, wish.call(h, h.add("c2", two)))
		h.do(t, h.del("c2", two))
	}
	must(t, h.Do(func() error { return plant("thief", "10.5.1.7") }))
	h.refuse(t, asking{env: "IP=10.5.1.7"}.call(h, h.add("c1", one)), codeTaken, "10.5.1.7", "thief")
}

func TestAChosenAddressGoesRoundOnesThatWereAskedFor(t *testing.T) {
	h := newHost(t, "10.5.1.0/29")
	h.do(t, asking{env: "IP=10.5.1.4"}.call(h, h.add("wish", newSpace(t))))
	seen := map[string]bool{"[10.5.1.4]": true}
	for i := range 4 {
		seen[h.ips(t, h.add(fmt.Sprint("c", i), newSpace(t)))] = true
	}
	if len(seen) != 5 {
		t.Errorf("five pods have %v", seen)
	}
}
