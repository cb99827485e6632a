package etcd

import (
	"errors"
	"net"
	"testing"

	"github.com/overlayd/overlayd/subnet/etcd/etcdtest"
)

// TestAListWithoutAConfigurationGoesByTheFormerOne: a watch that lists again after the configuration was deleted must go on
// hearing of peers. Without a former one there is no network.
func TestAListWithoutAConfigurationGoesByTheFormerOne(t *testing.T) {
	t.Parallel()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	try(err)
	url := "http://" + l.Addr().String()
	try(l.Close())
	server, err := etcdtest.Serve(t.TempDir(), url)
	try(err)
	defer server.Close()
	s, err := Open(Options{Endpoints: []string{url}, Prefix: testPrefix})
	try(err)
	defer s.Close()
	put := func(key, value string) {
		_, err := s.client.Put(t.Context(), key, value)
		try(err)
	}
	put(s.keys.config(), `{"Network":"10.5.0.0/16"}`)
	former, err := s.read(t.Context(), nil)
	try(err)
	_, err = s.client.Delete(t.Context(), s.keys.config())
	try(err)
	put(s.keys.subnets()+"10.5.7.0-24", `{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"},"Node":"host7"}`)
	v, err := s.read(t.Context(), former)
	try(err)
	n := v.snapshot()
	if _, ok := n.Lease("host7"); !ok || !n.Doubt || len(n.Skipped) != 1 || n.Skipped[0].Key != "config" {
		t.Errorf("%+v: want host7's lease under the former configuration, the configuration skipped, and doubt", n)
	}
	if _, err := s.read(t.Context(), nil); !errors.Is(err, ErrNoConfig) {
		t.Errorf("without a former one: %v", err)
	}
	former.revision = v.revision + 1
	if _, err := s.read(t.Context(), former); !errors.Is(err, ErrNoConfig) {
		t.Errorf("in a store that is younger than the former one: %v", err)
	}
}
