package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/overlayd/overlayd/e2e/lab"
)

// client speaks to the lab's etcd on the server's own host: no cut cable is in the way.
func client(l *lab.Lab) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{lab.EtcdEndpoint}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) {
			var conn net.Conn
			err := l.EtcdHost().Do(func() (err error) {
				conn, err = net.Dial("tcp", addr)
				return err
			})
			return conn, err
		})},
	})
}

// bootID is different on each machine.
var bootID = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// store prints all that is in etcd, a key and its value a line, sorted.
func (s *story) store(ts *testscript.TestScript, _ []string) error {
	c, err := client(s.lab)
	if err != nil {
		return err
	}
	answer, err := c.Get(context.Background(), "/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return errors.Join(err, c.Close())
	}
	for _, kv := range answer.Kvs {
		fmt.Fprintf(ts.Stdout(), "%s %s\n", kv.Key, bootID.ReplaceAll(kv.Value, []byte("BOOT")))
	}
	return c.Close()
}
