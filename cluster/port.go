package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cluster/reverse"
)

// Protocols between peers, by ALPN.
const (
	ProtocolRaft  = "rookery-raft"
	ProtocolStore = "rookery-store"
	// protocolLink is a connection that its dialler keeps, to be reached over it.
	protocolLink = "rookery-link"
	// protocolReach is the question whether the dialler can be dialled.
	protocolReach = "rookery-reach"
)

const (
	// handshakeTimeout is what an honest client on a bad line needs at most; a
	// slow one is cut off after it.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes at a time: each costs a goroutine and about 20 kB.
	maxHandshakes = 256
	// maxHandshakesFrom one address: one client cannot take all places.
	maxHandshakesFrom = 32
	// recheckInterval is how often open connections are checked against removals.
	recheckInterval = 5 * time.Second
)

// PortConfig is what a [Port] needs.
type PortConfig struct {
	Listen   string // host:port; "" means :6443
	Identity *identity.Identity
	// Allowed tells whether the peer with this key may still speak to us
	// ([Registry.Allowed]). It is called at every handshake and must not block. nil: all may.
	Allowed func(name, fingerprint string) bool
	// Resolve returns where the peer's TLS port is, the best guess first; see [Members.Resolve].
	Resolve func(name string) []string
	// Changed is called when [Port.Linked] or [Port.Hidden] has another answer. It must not
	// block. May be nil.
	Changed func()
	Log     *slog.Logger
}

// Port is the one TCP port of a peer: TLS, told apart by ALPN. Raft and store
// connections are between peers only, whose certificates are checked in the handshake;
// everything else (h2, http/1.1, none) goes to the API, where a client
// certificate is optional and is checked by whoever serves.
type Port struct {
	cfg       PortConfig
	ln        net.Listener
	tls       *tls.Config
	listeners map[string]*demuxListener // by ALPN; "" is the API

	mu      sync.Mutex
	pending map[netip.Addr]int     // handshakes by address
	inHand  int                    // handshakes in all
	conns   map[*peerConn]struct{} // open connections of peers
	raw     map[net.Conn]struct{}  // connections in the handshake
	links   map[string]*reverse.Caller
	sights  map[string]sight // of peers that asked whether they can be dialled
	reaches chan struct{}    // places for questions whether a peer can be dialled
	closed  bool
	wg      sync.WaitGroup
}

// Listen takes the port; connections wait in the kernel until [Port.Run]. A port
// that another program has is an error with the cure.
func Listen(cfg PortConfig) (*Port, error) {
	if cfg.Listen == "" {
		cfg.Listen = fmt.Sprintf(":%d", DefaultPort)
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %s is in use by another program (perhaps Rookery runs already, or another Kubernetes): "+
			"stop it (see `ss -tlnp`), or choose another port: %w", cfg.Listen, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Listen, err)
	}
	p := &Port{cfg: cfg, ln: ln, listeners: make(map[string]*demuxListener), pending: make(map[netip.Addr]int),
		conns: make(map[*peerConn]struct{}), raw: make(map[net.Conn]struct{}), links: make(map[string]*reverse.Caller), sights: make(map[string]sight),
		reaches: make(chan struct{}, maxReaches)}
	for _, proto := range []string{ProtocolRaft, ProtocolStore, ""} {
		p.listeners[proto] = newDemuxListener(ln.Addr())
	}
	p.tls = p.serverConfig()
	return p, nil
}

func (p *Port) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12, // for old API clients; peers need 1.3, see below
		NextProtos:     []string{ProtocolRaft, ProtocolStore, protocolLink, protocolReach, "h2", "http/1.1"},
		GetCertificate: p.cfg.Identity.GetCertificate,
		// Asked for, never demanded by crypto/tls: its check would look at dates.
		ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if !betweenPeers(cs.NegotiatedProtocol) {
				return nil
			}
			if cs.Version < tls.VersionTLS13 {
				return errors.New("peers speak TLS 1.3")
			}
			_, _, err := p.verifyPeer(&cs)
			return err
		},
	}
}

func betweenPeers(protocol string) bool {
	return slices.Contains([]string{ProtocolRaft, ProtocolStore, protocolLink, protocolReach}, protocol)
}

// verifyPeer returns the peer on the other side of a connection; it has not been removed.
func (p *Port) verifyPeer(cs *tls.ConnectionState) (name, fingerprint string, err error) {
	name, fingerprint, err = p.cfg.Identity.VerifyPeer(cs)
	if err != nil {
		return "", "", err
	}
	return name, fingerprint, p.check(name, fingerprint)
}

func (p *Port) check(name, fingerprint string) error {
	if p.cfg.Allowed != nil && !p.cfg.Allowed(name, fingerprint) {
		return fmt.Errorf("%s: %w", name, ErrRemoved)
	}
	return nil
}

// VerifyPeer is for HTTP handlers of paths between peers: who is on the other
// side of the request's connection, if it is a peer that has not been removed.
func (p *Port) VerifyPeer(cs *tls.ConnectionState) (name string, err error) {
	name, _, err = p.verifyPeer(cs)
	return name, err
}

// Addr is what the port listens on.
func (p *Port) Addr() net.Addr { return p.ln.Addr() }

// Listener gives the connections of a protocol between peers ([ProtocolRaft],
// [ProtocolStore]), and of the API for any other name. Closing it refuses that protocol only.
func (p *Port) Listener(protocol string) net.Listener {
	if l, ok := p.listeners[protocol]; ok {
		return l
	}
	return p.listeners[""]
}

// API gives the connections for an http.Server's Serve. They are *tls.Conn
// with the handshake done, so that HTTP/2 works by ALPN. The server sets ReadHeaderTimeout and IdleTimeout itself.
func (p *Port) API() net.Listener { return p.listeners[""] }

// PeerName tells which peer is on the other side of a connection that a peer
// protocol's listener gave; "" for any other connection.
func PeerName(c net.Conn) string {
	if pc, ok := c.(*peerConn); ok {
		return pc.name
	}
	return ""
}

// Run accepts connections until ctx ends, and returns when all of its goroutines
// are gone and every connection between peers is closed. API connections are the http.Server's to close.
func (p *Port) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.ln.Close() })
	defer stop()
	p.wg.Go(func() { p.recheck(ctx) })
	err := p.accept(ctx)
	p.shutdown()
	p.wg.Wait()
	return err
}

func (p *Port) accept(ctx context.Context) error {
	for {
		conn, err := p.ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", p.ln.Addr(), err)
		case err != nil: // out of file descriptors, most likely: wait for some to come back
			p.cfg.Log.Error("connection not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		p.take(ctx, conn)
	}
}

// take serves a connection unless there are too many. It does not block.
func (p *Port) take(ctx context.Context, conn net.Conn) {
	from, ok := p.admit(conn)
	if !ok {
		p.cfg.Log.Debug("connection refused: too many handshakes", "from", conn.RemoteAddr())
		conn.Close()
		return
	}
	go func() {
		defer p.wg.Done()
		p.serve(ctx, conn, from)
	}()
}

// admit takes a place for a handshake, and one among the goroutines that Run waits for.
func (p *Port) admit(conn net.Conn) (netip.Addr, bool) {
	var from netip.Addr
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		from = limitKey(a.AddrPort().Addr())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.inHand >= maxHandshakes || p.pending[from] >= maxHandshakesFrom {
		return from, false
	}
	p.wg.Add(1)
	p.inHand++
	p.pending[from]++
	p.raw[conn] = struct{}{}
	return from, true
}

func (p *Port) release(conn net.Conn, from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.raw, conn)
	p.inHand--
	if p.pending[from]--; p.pending[from] == 0 {
		delete(p.pending, from)
	}
}

func (p *Port) serve(ctx context.Context, conn net.Conn, from netip.Addr) {
	tc := tls.Server(conn, p.tls)
	err := conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if err == nil {
		err = tc.HandshakeContext(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	p.release(conn, from)
	if err != nil {
		p.cfg.Log.Debug("handshake failed", "from", conn.RemoteAddr(), "error", err)
		conn.Close()
		return
	}
	cs := tc.ConnectionState()
	if !betweenPeers(cs.NegotiatedProtocol) {
		p.listeners[""].deliver(ctx, tc)
		return
	}
	name, fp, err := p.verifyPeer(&cs)
	if err != nil { // removed within the handshake
		conn.Close()
		return
	}
	switch pc := p.track(tc, name, fp); cs.NegotiatedProtocol {
	case protocolLink:
		p.serveLink(ctx, pc)
	case protocolReach:
		p.serveReach(ctx, pc)
	default:
		p.listeners[cs.NegotiatedProtocol].deliver(ctx, pc)
	}
}
