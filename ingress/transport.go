package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"hash/maphash"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// dialTimeout is for one endpoint: one lost SYN is not the end, and the client still waits when the next is tried.
	dialTimeout = 2 * time.Second
	// maxTries bounds the endpoints that a request tries to reach.
	maxTries = 3
	// idleTimeout is how long a connection to an endpoint waits for the next request: less than what servers usually do.
	idleTimeout = 55 * time.Second
)

var (
	errNoEndpoints = errors.New("no endpoint is ready")
	errTimeout     = errors.New("the endpoint did not answer in time")
)

// dialError is of a connection that was never made: the request went to nobody.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// exchange is one request on its way.
type exchange struct {
	route    *route
	client   string // address
	endpoint string // that was asked last
	tries    int
	answered func(*http.Response) // called when the response begins; may be nil
	late     func() bool          // the client has let its time to send the request pass; may be nil
	upgraded bool                 // to another protocol
}

type exchangeKey struct{}

// transport is a RoundTripper that sends requests to the endpoints of their exchange's
// backend. Another endpoint is tried only if no connection could be made.
type transport struct {
	seed  maphash.Seed
	conns conns
	by    map[protocol]*http.Transport
}

func newTransport() *transport {
	t := &transport{seed: maphash.MakeSeed(), by: map[protocol]*http.Transport{}}
	for _, p := range []protocol{protocolHTTP, protocolHTTPS, protocolH2C} {
		rt := &http.Transport{
			DialContext: t.dial, DisableCompression: true, MaxIdleConnsPerHost: 32, IdleConnTimeout: idleTimeout,
			TLSHandshakeTimeout: 5 * time.Second, ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: 256 << 10,
		}
		switch p {
		case protocolH2C:
			rt.Protocols = new(http.Protocols)
			rt.Protocols.SetUnencryptedHTTP2(true)
		case protocolHTTPS:
			rt.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
			rt.ForceAttemptHTTP2 = true
		}
		t.by[p] = rt
	}
	return t
}

func (t *transport) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	return t.conns.add(conn, addr), nil
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	x := req.Context().Value(exchangeKey{}).(*exchange)
	b := x.route.backend
	var tried []*endpoint
	err := errNoEndpoints
	for len(tried) < maxTries {
		ep := b.pick(t.seed, x.client, tried)
		if ep == nil {
			break
		}
		tried = append(tried, ep)
		x.endpoint, x.tries = ep.addr, len(tried)
		var resp *http.Response
		resp, err = t.try(req, b.protocol, ep)
		if err == nil {
			return resp, nil
		}
		var dial *dialError
		if !errors.As(err, &dial) || req.Context().Err() != nil {
			return nil, err
		}
	}
	return nil, err
}

func (t *transport) try(req *http.Request, p protocol, ep *endpoint) (*http.Response, error) {
	out := *req
	u := *req.URL
	u.Scheme, u.Host = "http", ep.addr
	if p == protocolHTTPS {
		u.Scheme = "https"
	}
	out.URL = &u
	if req.Body != nil {
		out.Body = keepOpen{req.Body} // another endpoint may need it; the reverse proxy closes it
	}
	ep.pending.Add(1)
	resp, err := t.by[p].RoundTrip(&out)
	if err != nil || resp.StatusCode == http.StatusSwitchingProtocols {
		ep.pending.Add(-1)
		return resp, err
	}
	resp.Body = &counted{ReadCloser: resp.Body, done: sync.OnceFunc(func() { ep.pending.Add(-1) })}
	return resp, nil
}

func (t *transport) close() {
	for _, rt := range t.by {
		rt.CloseIdleConnections()
	}
}

type keepOpen struct{ io.Reader }

func (keepOpen) Close() error { return nil }

type counted struct {
	io.ReadCloser
	done func()
}

func (c *counted) Close() error {
	c.done()
	return c.ReadCloser.Close()
}
