package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// handler proxies the requests of one table after the other.
type handler struct {
	cfg     Config
	table   atomic.Pointer[table]
	to      *transport
	reverse *httputil.ReverseProxy
}

func newHandler(cfg Config) *handler {
	h := &handler{cfg: cfg, to: newTransport()}
	h.table.Store(&table{any: &site{}})
	h.reverse = &httputil.ReverseProxy{
		Transport: h.to, Rewrite: h.rewrite, ErrorHandler: h.fail, ModifyResponse: answered, BufferPool: &buffers{},
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return h
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	rec := &recorder{ResponseWriter: w}
	x := &exchange{client: h.clientOf(r)}
	if !h.challenge(rec, r) {
		h.serve(rec, r, x)
	}
	if x.upgraded { // the response went by the connection, not by rec
		rec.code = http.StatusSwitchingProtocols
	}
	h.note(rec, r, x, time.Since(began))
}

// serve answers a request by the rule that has it.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, x *exchange) {
	route, tls := h.table.Load().match(hostOf(r.Host), r.URL.Path)
	x.route = route
	switch {
	case route == nil:
		http.Error(w, "no Ingress has a rule for this host and path", http.StatusNotFound)
	case tls && !h.byTLS(r) && route.options.redirect && h.cfg.HTTPS != 0:
		http.Redirect(w, r, "https://"+h.tlsHost(r.Host)+r.URL.RequestURI(), http.StatusPermanentRedirect)
	default:
		h.proxy(w, r, x)
	}
}

// byTLS tells whether the client has come by TLS, to this peer or to a trusted proxy in front of it.
func (h *handler) byTLS(r *http.Request) bool {
	return r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") && h.trusts(addressOf(r.RemoteAddr))
}

// tlsHost is where a host is reached by TLS.
func (h *handler) tlsHost(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
	}
	if h.cfg.HTTPS == 443 {
		return host
	}
	return host + ":" + strconv.Itoa(int(h.cfg.HTTPS))
}

func (h *handler) proxy(w http.ResponseWriter, r *http.Request, x *exchange) {
	o := x.route.options
	if o.maxBody > 0 {
		if r.ContentLength > o.maxBody {
			http.Error(w, fmt.Sprintf("a request to this host may have %d bytes at most", o.maxBody), http.StatusRequestEntityTooLarge)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, o.maxBody)
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, x))
	defer cancel(nil)
	r = r.WithContext(ctx)
	if o.timeout > 0 {
		// It runs from the last byte of the request to the first of the response.
		timer := time.AfterFunc(o.timeout, func() { cancel(errTimeout) })
		defer timer.Stop()
		var answered atomic.Bool
		x.answered = func() { answered.Store(true); timer.Stop() }
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &pacedBody{ReadCloser: r.Body, within: o.timeout, timer: timer, answered: &answered, control: http.NewResponseController(w)}
		}
	}
	h.reverse.ServeHTTP(w, r)
}

// rewrite makes the request that an endpoint sees: its own but for what is said of the way it came.
func (h *handler) rewrite(p *httputil.ProxyRequest) {
	p.Out.Host = p.In.Host
	p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came, also where it is odd
	trusted := h.trusts(addressOf(p.In.RemoteAddr))
	if trusted {
		p.Out.Header["X-Forwarded-For"] = p.In.Header["X-Forwarded-For"]
	}
	p.SetXForwarded()
	port := h.cfg.HTTP
	if p.In.TLS != nil {
		port = h.cfg.HTTPS
	}
	p.Out.Header.Set("X-Forwarded-Port", strconv.Itoa(int(port)))
	p.Out.Header.Set("X-Real-IP", addressOf(p.In.RemoteAddr))
	if trusted {
		for _, name := range []string{"X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-IP"} {
			if v := p.In.Header.Get(name); v != "" {
				p.Out.Header.Set(name, v)
			}
		}
	}
	if p.Out.Header.Get("User-Agent") == "" {
		p.Out.Header.Set("User-Agent", "") // not Go's own
	}
}

// answered notes that the response begins.
func answered(resp *http.Response) error {
	x := resp.Request.Context().Value(exchangeKey{}).(*exchange)
	if x.answered != nil {
		x.answered()
	}
	x.upgraded = resp.StatusCode == http.StatusSwitchingProtocols
	return nil
}

// clientOf is the client's address, for the log and for affinity: behind trusted proxies it
// is the last that they have seen and that is not one of them. What the client itself has
// written before that is never looked at.
func (h *handler) clientOf(r *http.Request) string {
	client := addressOf(r.RemoteAddr)
	for seen := strings.Join(r.Header.Values("X-Forwarded-For"), ","); seen != "" && h.trusts(client); {
		last := strings.LastIndexByte(seen, ',')
		ip, err := netip.ParseAddr(strings.TrimSpace(seen[last+1:]))
		if err != nil {
			break
		}
		client, seen = ip.Unmap().WithZone("").String(), seen[:max(last, 0)]
	}
	return client
}

func (h *handler) trusts(client string) bool {
	ip, err := netip.ParseAddr(client)
	return err == nil && slices.ContainsFunc(h.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// fail answers a request that no endpoint has answered.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := r.Context().Value(exchangeKey{}).(*exchange)
	status, text := http.StatusBadGateway, "the service cannot be reached"
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		status, text = http.StatusRequestEntityTooLarge, fmt.Sprintf("a request to this host may have %d bytes at most", large.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		status, text = http.StatusRequestTimeout, "the request did not come in time"
	case errors.Is(context.Cause(r.Context()), errTimeout):
		status, text = http.StatusGatewayTimeout, errTimeout.Error()
	case errors.Is(err, errNoEndpoints):
		status, text = http.StatusServiceUnavailable, "the service has no endpoint that is ready"
	case r.Context().Err() != nil:
		status = statusClientGone
	}
	if status != statusClientGone {
		h.cfg.Logger.Debug("request failed", "ingress", x.route.ingress, "service", x.route.backend.service, "endpoint", x.endpoint, "tries", x.tries, "error", err)
	}
	http.Error(w, text, status)
}

// statusClientGone is what the log says of clients that left before they were answered, as others do.
const statusClientGone = 499

// note counts and logs a request that is over.
func (h *handler) note(rec *recorder, r *http.Request, x *exchange, took time.Duration) {
	name, service := "", ""
	if x.route != nil {
		name, service = x.route.ingress, x.route.backend.service
	}
	h.cfg.Metrics.count(name, rec.status(), took, x.tries)
	if h.cfg.Access == nil {
		return
	}
	h.cfg.Access.LogAttrs(r.Context(), slog.LevelInfo, "request",
		slog.String("client", x.client), slog.String("method", r.Method), slog.String("host", r.Host), slog.String("uri", r.URL.RequestURI()),
		slog.String("protocol", r.Proto), slog.Bool("tls", r.TLS != nil), slog.Int("status", rec.status()), slog.Int64("bytes", rec.bytes),
		slog.Float64("seconds", took.Seconds()), slog.String("ingress", name), slog.String("service", service),
		slog.String("endpoint", x.endpoint), slog.Int("tries", x.tries), slog.String("userAgent", r.UserAgent()), slog.String("referer", r.Referer()))
}

// recorder keeps what was answered.
type recorder struct {
	http.ResponseWriter
	code  int
	bytes int64
}

func (r *recorder) status() int {
	if r.code == 0 {
		return http.StatusOK
	}
	return r.code
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 && code >= 200 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// pacedBody gives up on a client that sends nothing for too long, and gives the endpoint
// its time anew while the request still comes.
type pacedBody struct {
	io.ReadCloser
	within   time.Duration
	timer    *time.Timer
	answered *atomic.Bool // the response has begun, and the timer is to stay stopped
	control  *http.ResponseController
}

func (b *pacedBody) Read(p []byte) (int, error) {
	// A connection that cannot have a deadline has the timer's.
	_ = b.control.SetReadDeadline(time.Now().Add(b.within))
	n, err := b.ReadCloser.Read(p)
	switch {
	case err != nil:
		// What the client sends next is the next request, which has its own time.
		_ = b.control.SetReadDeadline(time.Time{})
	case b.timer.Stop():
		b.timer.Reset(b.within)
		if b.answered.Load() { // between Stop and Reset
			b.timer.Stop()
		}
	}
	return n, err
}

// buffers are those that bodies are copied with.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

func addressOf(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// hostOf is a request's host in lower case, without port and dot at the end.
func hostOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
