// Package etcdtest runs a real etcd server inside the process, for tests and the demo. No shipped binary holds it.
package etcdtest

import (
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Serve starts a server with its data in dir that answers at the given URL, such as http://192.0.2.1:2379, and waits
// until it does. The caller closes it.
func Serve(dir, client string) (*embed.Etcd, error) {
	at, err := url.Parse(client)
	if err != nil {
		return nil, err
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c := embed.NewConfig()
	c.Dir, c.Name = dir, "lab"
	c.LogLevel, c.Logger, c.LogOutputs = "error", "zap", []string{"/dev/null"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*at}, []url.URL{*at}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.UnsafeNoFsync = true // a lab's data need not survive the machine
	c.TickMs, c.ElectionMs = 20, 200
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("start etcd at %s: %w", client, err)
	}
	const patience = 20 * time.Second
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-time.After(patience):
		err = fmt.Errorf("not ready after %s", patience)
	}
	e.Close()
	return nil, fmt.Errorf("start etcd at %s: %w", client, err)
}
