package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// dialTimeout bounds one try at one address; the deadline of ctx may be sooner.
const dialTimeout = 3 * time.Second

// ErrUnresolved says that nobody knows where a peer is.
var ErrUnresolved = errors.New("the address of the peer is not known")

// errOlder says that the other side was reached and refused to speak a protocol.
var errOlder = errors.New("it seems to be an older Rookery, without the protocol")

// TLSConfig is for dialling the peer called name with our own certificate: the
// other side must be that peer, whatever its address, and not removed. Each
// call returns a new one; the caller sets NextProtos.
func (p *Port) TLSConfig(name string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		ServerName:           "", // peers are told apart by the certificate alone, see VerifyConnection
		InsecureSkipVerify:   true,
		GetClientCertificate: p.cfg.Identity.GetClientCertificate,
		VerifyConnection: func(cs tls.ConnectionState) error {
			fp, err := p.cfg.Identity.VerifyServer(&cs, name)
			if err != nil {
				return err
			}
			return p.check(name, fp)
		},
	}
}

// Dial opens a connection to the peer's TLS port for a protocol (ALPN): over the one that
// it keeps to here, if it does, then to each address that Resolve gives, until one answers.
// It blocks until the TLS handshake is done or ctx ends.
func (p *Port) Dial(ctx context.Context, name, protocol string) (net.Conn, error) {
	return try(ctx, name, p.ways(name), func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		return p.secure(ctx, conn, name, protocol)
	})
}

// dialDirect is Dial without the connection that the peer keeps.
func (p *Port) dialDirect(ctx context.Context, name, protocol string) (*peerConn, error) {
	return try(ctx, name, p.direct(name), func(ctx context.Context, conn net.Conn) (*peerConn, error) {
		return p.secure(ctx, conn, name, protocol)
	})
}

// secure speaks TLS over a new connection, and closes it unless the peer is at its other end.
func (p *Port) secure(ctx context.Context, conn net.Conn, name, protocol string) (*peerConn, error) {
	conf := p.TLSConfig(name)
	conf.NextProtos = []string{protocol}
	tc := tls.Client(conn, conf)
	var err error
	if until, ok := ctx.Deadline(); ok { // over a connection that a peer keeps, a write ends by it only
		err = conn.SetDeadline(until)
	}
	if err == nil {
		err = tc.HandshakeContext(ctx)
	}
	cs := tc.ConnectionState()
	if alerted(err) || err == nil && cs.NegotiatedProtocol != protocol {
		err = fmt.Errorf("dial %s: %w %s", conn.RemoteAddr(), errOlder, protocol)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	var fp string
	if err == nil {
		fp, err = p.cfg.Identity.VerifyServer(&cs, name)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return p.track(tc, name, fp), nil
}

// alerted tells whether a handshake ended with the other side's word that it knows no such protocol.
func alerted(err error) bool {
	var op *net.OpError
	// crypto/tls has no better sign of the alert.
	return errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == "tls: no application protocol"
}

// HTTPTransport is for requests to the peer's paths between peers (logs, exec, …)
// in HTTP/1.1, so that connections can be upgraded. The host of a request's URL is
// not looked at. The caller closes idle connections.
func (p *Port) HTTPTransport(name string) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return p.Dial(ctx, name, "http/1.1")
		},
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     90 * time.Second,
	}
}
