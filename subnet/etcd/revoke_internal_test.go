package etcd

import (
	"context"
	"net"
	"testing"
	"time"
)

// TestGivingEtcdLeasesBackDoesNotHoldUpTheEnd: a daemon that is told to stop while etcd hangs has two seconds.
func TestGivingEtcdLeasesBackDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // connections are made by the kernel, and nobody accepts them
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	s, err := Open(Options{Endpoints: []string{"http://" + mute.Addr().String()}, Prefix: testPrefix})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.revoke(ctx, 1, 2)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Error("not back within 2 s of the context's end")
	}
	_ = s.Close() // ends the requests
	<-done
}
