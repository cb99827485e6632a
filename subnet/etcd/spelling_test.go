package etcd_test

import (
	"fmt"
	"testing"
)

// TestAClaimIsSpelledAsFlannelReadsIt compares the whole store to the byte: another flannel, another overlayd and an
// administrator's script read these keys.
func TestAClaimIsSpelledAsFlannelReadsIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, config, ip, want string }{
		{
			"IPv4",
			`{"Network":"10.5.0.0/16","SubnetMin":"10.5.34.0","SubnetMax":"10.5.34.0"}`,
			"192.0.2.7",
			`/overlayd/network/overlayd/alive/host1 {"boot":"boot of 192.0.2.7","publicIP":"192.0.2.7"} for 60s
/overlayd/network/overlayd/history/10.5.34.0-24 {"node":"host1","epoch":1}
/overlayd/network/overlayd/nodes/host1 10.5.34.0-24 for 86400s
/overlayd/network/overlayd/vteps/192.0.2.7 host1 for 86400s
/overlayd/network/subnets/10.5.34.0-24 {"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"5e:1f:00:00:00:01"},"Node":"host1"} for 86400s
`,
		},
		{
			"dual stack",
			`{"Network":"10.5.0.0/16","SubnetMin":"10.5.34.0","SubnetMax":"10.5.34.0",
"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:22::","IPv6SubnetMax":"fd00:5:0:22::"}`,
			"192.0.2.7",
			`/overlayd/network/overlayd/alive/host1 {"boot":"boot of 192.0.2.7","publicIP":"192.0.2.7"} for 60s
/overlayd/network/overlayd/history/10.5.34.0-24 {"node":"host1","epoch":1}
/overlayd/network/overlayd/history/fd00:5:0:22::-64 {"node":"host1","epoch":1}
/overlayd/network/overlayd/nodes/host1 10.5.34.0-24&fd00:5:0:22::-64 for 86400s
/overlayd/network/overlayd/vteps/192.0.2.7 host1 for 86400s
/overlayd/network/subnets/10.5.34.0-24&fd00:5:0:22::-64 {"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"5e:1f:00:00:00:01"},"Node":"host1"} for 86400s
`,
		},
		{
			"v6 only, over v6",
			`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:22::","IPv6SubnetMax":"fd00:5:0:22::"}`,
			"2001:db8::7",
			`/overlayd/network/overlayd/alive/host1 {"boot":"boot of 2001:db8::7","publicIP":"2001:db8::7"} for 60s
/overlayd/network/overlayd/history/fd00:5:0:22::-64 {"node":"host1","epoch":1}
/overlayd/network/overlayd/nodes/host1 fd00:5:0:22::-64 for 86400s
/overlayd/network/overlayd/vteps/2001:db8::7 host1 for 86400s
/overlayd/network/subnets/fd00:5:0:22::-64 {"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"5e:1f:00:00:00:01"},"Node":"host1"} for 86400s
`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config := c.config[:len(c.config)-1] + `,"Backend":{"Type":"vxlan","VNI":7}}`
			n := serve(t, config)
			h := n.host(t, "host1", c.ip)
			must(t, h.want.MAC.UnmarshalText([]byte("5e:1f:00:00:00:01")))
			h.claim(t)
			same(t, n.dump(t), prefix+"/config "+config+"\n"+c.want)
		})
	}
}

func TestTheKeysOfANodeHangOnTwoEtcdLeases(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host1", "192.0.2.7").claim(t)
	claim, alive := n.leaseOf(t, "/overlayd/nodes/host1"), n.leaseOf(t, "/overlayd/alive/host1")
	if claim == alive || n.etcdLeases(t) != 2 {
		t.Fatalf("claim hangs on %x, alive on %x, and there are %d etcd leases: want two", claim, alive, n.etcdLeases(t))
	}
	n.revoke(t, alive)
	if n.leaseOf(t, "/overlayd/nodes/host1") == 0 {
		t.Fatal("the claim went with the sign of life")
	}
	n.revoke(t, claim)
	s, err := n.host(t, "host2", "192.0.2.8").store.List(t.Context())
	must(t, err)
	if len(s.Leases) != 0 || len(s.Held) != 1 {
		t.Fatalf("listed %+v: want no lease and one record of history", s)
	}
	same(t, n.dump(t), fmt.Sprintf(prefix+"/config "+wide+"\n"+prefix+"/overlayd/history/%s-24 {\"node\":\"host1\",\"epoch\":1}\n", s.Held[0].Subnet.Addr()))
}

// TestAnotherPrefixIsAnotherNetwork: neither do two networks see each other, nor does a sibling of subnets/ count as it.
func TestAnotherPrefixIsAnotherNetwork(t *testing.T) {
	t.Parallel()
	n := serve(t, wide)
	n.host(t, "host1", "192.0.2.7").claim(t)
	value := `{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VtepMAC":"5e:1f:00:00:00:09"}}`
	n.put(t, "/subnetsX/10.5.9.0-24", value)
	n.put(t, "2/subnets/10.5.9.0-24", value)
	n.put(t, "2/config", wide)
	s, err := n.host(t, "host2", "192.0.2.8").store.List(t.Context())
	must(t, err)
	if len(s.Leases) != 1 || len(s.Skipped) > 0 {
		t.Errorf("listed\n%swant host1 alone", describe(s))
	}
	s, err = hostAt(t, n.url, prefix+"2", "host2", "192.0.2.8").store.List(t.Context())
	must(t, err)
	same(t, describe(s), "10.5.9.0/24 of 192.0.2.9 via 192.0.2.9 mac 5e:1f:00:00:00:09\n")
}
