package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/cluster/reverse"
)

// errNoLink says that a peer keeps no connection to here.
var errNoLink = errors.New("the peer keeps no connection open to here")

// Linked tells whether the peer keeps a connection open to here, over which [Port.Dial] and
// gossip reach it: it cannot be dialled from here, or does not know yet.
func (p *Port) Linked(name string) bool { return p.link(name) != nil }

// SendLinked gives a datagram for the peer's gossip port on its way; false: it keeps no
// connection to here. It does not block.
func (p *Port) SendLinked(name string, packet []byte) bool {
	c := p.link(name)
	if c != nil {
		c.Send(packet)
	}
	return c != nil
}

// DialLinked opens a connection to a port of the peer over the one that it keeps. It does not
// block beyond ctx.
func (p *Port) DialLinked(ctx context.Context, name string, kind reverse.Kind) (net.Conn, error) {
	c := p.link(name)
	if c == nil {
		return nil, fmt.Errorf("dial %s: %w", name, errNoLink)
	}
	conn, err := c.Dial(ctx, kind)
	if errors.Is(err, reverse.ErrRetired) {
		p.unlink(name, c)
	}
	return conn, err
}

func (p *Port) link(name string) *reverse.Caller {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[name]
}

// notSent bounds what waits in the kernel for its turn on a connection that a peer keeps, in bytes:
// gossip's packets wait behind it. With it they take 0.2 s instead of 0.6 s while four streams
// fill a line of 10 Mbit/s, which carries as much.
const notSent = 16 << 10

// shortenQueue sets notSent.
func shortenQueue(conn net.Conn) error { return setTCP(conn, unix.TCP_NOTSENT_LOWAT, notSent) }

// unheard is how long a connection between peers lives on while the other end acknowledges nothing:
// TCP alone tries for a quarter of an hour, and after a cable was out for a minute waits another for
// its next try; with an address that its machine has lost it tries in vain.
const unheard = 10 * time.Second

// notForever sets unheard.
func notForever(conn net.Conn) error {
	return setTCP(conn, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
}

// setTCP sets an option of a connection that is the kernel's; others have none.
func setTCP(conn net.Conn, option, value int) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) })
	return errors.Join(err, refused)
}

// serveLink holds a connection that a peer keeps. The newest one of a peer counts: an older one is
// of a daemon that was restarted, or went with its address, and is closed.
func (p *Port) serveLink(ctx context.Context, conn *peerConn) {
	log := p.cfg.Log.With("peer", conn.name)
	if err := shortenQueue(conn.NetConn()); err != nil {
		log.Warn("gossip waits for bulk data on a peer's kept connection", "error", err)
	}
	c, err := reverse.NewCaller(conn, log)
	if err != nil {
		log.Error("a peer cannot keep a connection to here", "error", err)
		conn.Close()
		return
	}
	p.mu.Lock()
	old := p.links[conn.name]
	p.links[conn.name] = c
	p.mu.Unlock()
	if old != nil {
		p.wg.Go(func() { old.Close() }) // it may wait for one that is stuck
	}
	p.linksChanged()
	err = c.Run(ctx)
	log.Debug("the connection that the peer kept has ended", "error", err)
	p.unlink(conn.name, c)
	conn.Close()
}

func (p *Port) unlink(name string, c *reverse.Caller) {
	p.mu.Lock()
	current := p.links[name] == c
	if current {
		delete(p.links, name)
	}
	p.mu.Unlock()
	if current {
		p.linksChanged()
	}
}

func (p *Port) linksChanged() {
	if p.cfg.Changed != nil {
		p.cfg.Changed()
	}
}

// DialPlain opens a connection to the peer's TLS port, without TLS: over the connection that
// it keeps, if it does, else to the first address of Resolve that answers. The caller speaks TLS
// over it (see [Port.TLSConfig]), which shows who is at the other end.
func (p *Port) DialPlain(ctx context.Context, name string) (net.Conn, error) {
	return try(ctx, name, p.ways(name), func(_ context.Context, conn net.Conn) (net.Conn, error) { return conn, nil })
}

// way is how a peer's TLS port may be reached.
type way func(context.Context) (net.Conn, error)

// try goes through the ways to a peer until use has made of the connection what is wanted.
func try[C net.Conn](ctx context.Context, name string, ways []way, use func(context.Context, net.Conn) (C, error)) (none C, err error) {
	var errs []error
	for _, dial := range ways {
		conn, err := func() (C, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			plain, err := dial(ctx)
			if err != nil {
				return none, err
			}
			return use(ctx, plain)
		}()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		errs = append(errs, ErrUnresolved)
	}
	return none, fmt.Errorf("dial %s: %w", name, errors.Join(errs...))
}

// ways are all there are, the best guess first.
func (p *Port) ways(name string) []way {
	all := p.direct(name)
	if p.Linked(name) {
		over := func(ctx context.Context) (net.Conn, error) { return p.DialLinked(ctx, name, reverse.Port) }
		return append([]way{over}, all...)
	}
	return all
}

// direct are those to the peer's addresses, the best guess first.
func (p *Port) direct(name string) (all []way) {
	if p.cfg.Resolve == nil {
		return all
	}
	for _, addr := range p.cfg.Resolve(name) {
		all = append(all, func(ctx context.Context) (net.Conn, error) { return dialTCP(ctx, addr) })
	}
	return all
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: 15 * time.Second}
	return d.DialContext(ctx, "tcp", addr)
}
