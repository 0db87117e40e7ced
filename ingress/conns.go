package ingress

import (
	"context"
	"net"
	"sync"
)

// conns are open connections, those of clients or those to endpoints.
type conns struct {
	mu   sync.Mutex
	open map[*conn]struct{}
	none chan struct{} // closed when the last one is; nil: nobody waits
}

type conn struct {
	net.Conn
	addr string // of the endpoint
	of   *conns
}

func (c *conns) add(raw net.Conn, addr string) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*conn]struct{}{}
	}
	made := &conn{Conn: raw, addr: addr, of: c}
	c.open[made] = struct{}{}
	return made
}

func (c *conn) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}

func (c *conns) remove(gone *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, gone)
	if len(c.open) == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// cut closes the connections to endpoints of which gone says so: their machine is gone, nobody will.
func (c *conns) cut(gone func(addr string) bool) {
	c.mu.Lock()
	var all []*conn
	for conn := range c.open {
		if gone(conn.addr) {
			all = append(all, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range all {
		conn.Close()
	}
}

// end waits until all are closed, and closes what is left when ctx ends. Nobody adds any more.
func (c *conns) end(ctx context.Context) {
	c.mu.Lock()
	none := make(chan struct{})
	c.none = none
	if len(c.open) == 0 {
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
		c.cut(func(string) bool { return true })
	}
}

// listener notes the connections of clients.
type listener struct {
	net.Listener
	conns *conns
}

func (l listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.conns.add(raw, ""), nil
}
