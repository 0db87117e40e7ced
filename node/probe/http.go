package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"k8s.io/kubernetes/pkg/probe"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

// httpProber does kubelet's HTTP probe over a transport made for it.
type httpProber struct {
	transport http.RoundTripper
	redirect  func(req *http.Request, via []*http.Request) error
}

func newHTTPProber() httpProber {
	return httpProber{
		transport: oneShot{
			dialer: probe.ProbeDialer(),
			secure: &http.Transport{
				TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
				DisableKeepAlives:  true,
				DisableCompression: true,
				ForceAttemptHTTP2:  true,
				Proxy:              http.ProxyURL(nil),
				DialContext:        probe.ProbeDialer().DialContext,
			},
		},
		redirect: httpprobe.RedirectChecker(false),
	}
}

// Probe asks once. What the server says is a result; an error is ours.
func (p httpProber) Probe(ctx context.Context, req *http.Request, timeout time.Duration) (probe.Result, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := &http.Client{Transport: p.transport, CheckRedirect: p.redirect}
	result, output, err := httpprobe.DoHTTPProbe(req.WithContext(ctx), client)
	if result == probe.Failure && ctx.Err() == context.DeadlineExceeded {
		output = "Get " + (&url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path}).String() + ": no answer within " + timeout.String()
	}
	return result, output, err
}

// oneShot is a connection for each request, without the goroutines and channels of
// http.Transport: probes are most of what an idle peer does, and those were most of
// a probe. HTTPS, which is rare in probes, goes by http.Transport.
type oneShot struct {
	dialer *net.Dialer
	secure http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (o oneShot) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" {
		return o.secure.RoundTrip(req)
	}
	ctx := req.Context()
	address := req.URL.Host
	if req.URL.Port() == "" {
		address = net.JoinHostPort(req.URL.Hostname(), "80")
	}
	conn, err := o.dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// The deadline of ctx, or its end before that, ends what waits on the connection.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	body := &oneShotBody{conn: conn, stop: stop}
	out := req.Clone(ctx)
	out.Close = true
	if err := out.Write(conn); err != nil {
		body.end()
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 1<<10), req)
	if err != nil {
		body.end()
		return nil, err
	}
	body.ReadCloser = resp.Body
	resp.Body = body
	return resp, nil
}

// oneShotBody closes the connection with the body.
type oneShotBody struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

// Close does not drain what was not read: the connection is of no more use.
func (b *oneShotBody) Close() error { return b.end() }

func (b *oneShotBody) end() error {
	b.stop()
	return b.conn.Close()
}
