package etcd

import (
	"context"
	"net"
	"sync"
)

// connections knows the open connections, so that they can be given up. One whose local address the host has lost is dead
// without anybody saying so, and would hold every request until its deadline.
type connections struct {
	made []chan struct{} // each gets a hint when a connection is made: the server behind it may be another

	mu   sync.Mutex
	open map[*connection]struct{}
}

type connection struct {
	net.Conn
	all *connections
}

func (c *connections) dial(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: raw, all: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = struct{}{}
	for _, hint := range c.made {
		nudge(hint)
	}
	return conn, nil
}

// Close implements [net.Conn].
func (c *connection) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

// drop closes all connections: the client makes new ones at once.
func (c *connections) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Conn.Close() // the reader sees it and calls Close
	}
}

// nudge leaves a hint that need not be taken at once, and does not block.
func nudge(hint chan struct{}) {
	select {
	case hint <- struct{}{}:
	default: // there is one
	}
}
