package etcd_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// cable carries TCP to a server. It can be cut, it can go mute: then connections stand and nothing passes; and it can
// freeze: then nothing passes on the connections that there are, and new ones work.
type cable struct {
	url, from, to string

	mu       sync.Mutex
	listener net.Listener // nil while the cable is cut
	conns    map[net.Conn]bool
	passing  sync.RWMutex // write-locked while mute
	muted    bool
	frosts   atomic.Int32
	running  sync.WaitGroup
}

func lay(t *testing.T, url string) *cable {
	t.Helper()
	from := freeAddr(t)
	c := &cable{url: "http://" + from, from: from, to: url[strings.Index(url, "://")+3:], conns: map[net.Conn]bool{}}
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
	made := c.frosts.Load()
	c.running.Go(func() { carry(gate{c, far, made}, near) })
	c.running.Go(func() { carry(gate{c, near, made}, far) })
}

func carry(to gate, from net.Conn) {
	defer from.Close()
	defer to.Close()
	_, _ = io.Copy(struct{ io.Writer }{to}, from)
}

// gate passes writes on while the cable is not mute, and drops them once it is frozen.
type gate struct {
	c *cable
	net.Conn
	made int32
}

func (g gate) Write(b []byte) (int, error) {
	if g.made != g.c.frosts.Load() {
		return len(b), nil
	}
	g.c.passing.RLock()
	defer g.c.passing.RUnlock()
	return g.Conn.Write(b)
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

// used says whether there is a connection.
func (c *cable) used() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns) > 0
}

func (c *cable) freeze() { c.frosts.Add(1) }

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
