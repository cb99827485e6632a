package etcd_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// cable carries TCP to a server. It can be cut, and it can go mute: then connections stand and nothing passes.
type cable struct {
	url, from, to string

	mu       sync.Mutex
	listener net.Listener // nil while the cable is cut
	conns    map[net.Conn]bool
	passing  sync.RWMutex // write-locked while mute
	muted    bool
	running  sync.WaitGroup
}

func lay(t *testing.T, url string) *cable {
	t.Helper()
	from := freeAddr(t)
	c := &cable{url: "http://" + from, from: from, to: strings.TrimPrefix(url, "http://"), conns: map[net.Conn]bool{}}
	c.mend(t)
	t.Cleanup(func() {
		c.unmute()
		c.cut()
		c.running.Wait()
	})
	return c
}

func (c *cable) mend(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", c.from)
	must(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener = l
	c.running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			c.connect(l, near)
		}
	})
}

func (c *cable) connect(l net.Listener, near net.Conn) {
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		near.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener != l {
		near.Close()
		far.Close()
		return
	}
	c.conns[near], c.conns[far] = true, true
	c.running.Go(func() { c.carry(near, far) })
	c.running.Go(func() { c.carry(far, near) })
}

func (c *cable) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	_, _ = io.Copy(gate{c, to}, from)
}

// gate passes writes on while the cable is not mute.
type gate struct {
	c  *cable
	to net.Conn
}

func (g gate) Write(b []byte) (int, error) {
	g.c.passing.RLock()
	defer g.c.passing.RUnlock()
	return g.to.Write(b)
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener == nil {
		return
	}
	c.listener.Close()
	c.listener = nil
	for conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

func (c *cable) mute(t *testing.T) {
	t.Helper()
	c.passing.Lock()
	c.muted = true
}

func (c *cable) unmute() {
	if c.muted {
		c.muted = false
		c.passing.Unlock()
	}
}
