package cluster

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// peerConn is a connection with a peer that is closed when the peer is removed.
type peerConn struct {
	*tls.Conn
	port              *Port
	name, fingerprint string
}

func (c *peerConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.conns, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// track returns a closed connection if the port is shut down already.
func (p *Port) track(tc *tls.Conn, name, fp string) *peerConn {
	c := &peerConn{Conn: tc, port: p, name: name, fingerprint: fp}
	if betweenPeers(tc.ConnectionState().NegotiatedProtocol) { // who reads logs may stop for a while
		if err := notForever(tc.NetConn()); err != nil {
			p.cfg.Log.Warn("a connection may outlive the other end by minutes", "peer", name, "error", err)
		}
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.conns[c] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		tc.NetConn().Close()
	}
	return c
}

// recheck closes the connections of peers that have been removed.
func (p *Port) recheck(ctx context.Context) {
	t := time.NewTicker(recheckInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.Recheck()
		}
	}
}

// Recheck closes at once the connections of peers that are not allowed any
// more. [Port.Run] does the same every few seconds.
func (p *Port) Recheck() {
	for _, c := range p.openConns() {
		if err := p.check(c.name, c.fingerprint); err != nil {
			p.cfg.Log.Info("connection closed: the peer has been removed", "peer", c.name)
			c.drop()
		}
	}
}

func (p *Port) openConns() []*peerConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := make([]*peerConn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	return conns
}

// drop closes without the TLS goodbye, which would wait for a stuck peer.
func (c *peerConn) drop() {
	c.port.mu.Lock()
	delete(c.port.conns, c)
	c.port.mu.Unlock()
	c.NetConn().Close()
}

func (p *Port) shutdown() {
	p.ln.Close()
	for _, l := range p.listeners {
		l.Close()
	}
	p.mu.Lock()
	p.closed = true
	for c := range p.raw {
		c.Close()
	}
	p.mu.Unlock()
	for _, c := range p.openConns() {
		c.drop()
	}
}

// deliverTimeout is how long a connection waits for whoever serves its
// protocol to accept it. Nobody does while the daemon starts.
const deliverTimeout = 10 * time.Second

// maxUndelivered bounds the connections that wait for a protocol's server.
const maxUndelivered = 128

// demuxListener is the net.Listener of one protocol.
type demuxListener struct {
	addr net.Addr
	ch   chan net.Conn
	wait chan struct{} // places for connections that wait
	done chan struct{}
	once sync.Once
}

func newDemuxListener(addr net.Addr) *demuxListener {
	return &demuxListener{addr: addr, ch: make(chan net.Conn), wait: make(chan struct{}, maxUndelivered), done: make(chan struct{})}
}

// deliver blocks the connection's own goroutine, nobody else's.
func (l *demuxListener) deliver(ctx context.Context, c net.Conn) {
	select {
	case l.wait <- struct{}{}:
		defer func() { <-l.wait }()
	default:
		c.Close()
		return
	}
	t := time.NewTimer(deliverTimeout)
	defer t.Stop()
	select {
	case l.ch <- c:
		return
	case <-t.C:
	case <-l.done:
	case <-ctx.Done():
	}
	c.Close()
}

func (l *demuxListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *demuxListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *demuxListener) Addr() net.Addr { return l.addr }
