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
	// challenges are for issuers.
	challenges *challenges
}

func newHandler(cfg Config) *handler {
	h := &handler{cfg: cfg, to: newTransport(), challenges: &challenges{client: cfg.Client}}
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
		x.answered = func(*http.Response) { timer.Stop() }
		if r.Body != nil && r.Body != http.NoBody {
			body := &pacedBody{
				ReadCloser: r.Body, within: o.timeout, timer: timer, control: http.NewResponseController(w), streams: r.ProtoMajor >= 2,
			}
			r.Body, x.answered, x.late = body, body.answer, body.late
			defer body.leave()
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
		x.answered(resp)
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
	case x.late != nil && x.late(): // for the server, the client has gone
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
// its time anew while the request still comes. Once the response has begun, both may take theirs;
// by HTTP/1 only the endpoint, for the server cannot end an exchange while it waits for its request.
type pacedBody struct {
	io.ReadCloser
	within   time.Duration
	timer    *time.Timer // of the endpoint
	control  *http.ResponseController
	streams  bool         // the client may pause for ever once it is answered: HTTP/2
	answered atomic.Bool  // the response has begun, and the timer is to stay stopped
	until    atomic.Int64 // when a read has to be over, in nanoseconds since 1970; 0: none is under way
	ended    atomic.Bool  // what the client sends next is the next request, which has its own time

	mu   sync.Mutex
	over bool // control is not to be used any more
}

// deadline is for the client to send more; false where its connection cannot have one.
func (b *pacedBody) deadline(at time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over || b.ended.Load() || b.control.SetReadDeadline(at) == nil
}

// answer notes that the response begins.
func (b *pacedBody) answer(resp *http.Response) {
	b.answered.Store(true)
	b.timer.Stop()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		b.deadline(time.Time{})
		b.disown() // the connection is the upgraded protocol's
		return
	}
	if !b.ended.Load() && !b.streams {
		// Unless the connection ends with it, the server keeps a response until the request has come.
		resp.Header.Set("Connection", "close")
	}
	b.begun()
}

// begun sets the deadline that holds once the response has begun.
func (b *pacedBody) begun() {
	if b.streams {
		b.deadline(time.Time{})
	} else {
		b.deadline(time.Now().Add(b.within))
	}
}

// leave is for the end of the handler: what is left of a request the server reads, and it has its time too.
func (b *pacedBody) leave() {
	b.deadline(time.Now().Add(b.within))
	b.disown()
}

// disown leaves the connection's deadlines to others, also where a read ends later.
func (b *pacedBody) disown() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

func (b *pacedBody) Read(p []byte) (int, error) {
	if b.answered.Load() {
		if !b.streams {
			b.begun()
		}
		return b.read(p)
	}
	// While the client is waited for, the endpoint is not: it has its time from what comes next.
	// A client that cannot have a deadline has the endpoint's.
	until := time.Now().Add(b.within)
	b.until.Store(until.UnixNano())
	paused := b.deadline(until) && b.timer.Stop()
	if b.answered.Load() { // just now
		b.begun()
	}
	n, err := b.read(p)
	if err == nil || b.ended.Load() {
		b.until.Store(0)
	}
	if paused || err == nil && b.timer.Stop() {
		b.timer.Reset(b.within)
	}
	if b.answered.Load() { // meanwhile
		b.timer.Stop()
	}
	return n, err
}

// late tells whether the client has let the time for a read pass.
func (b *pacedBody) late() bool {
	until := b.until.Load()
	return until != 0 && time.Now().UnixNano() >= until
}

// read leaves the deadline of a client that was too slow where it is: nothing more is waited for.
func (b *pacedBody) read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.deadline(time.Time{})
		b.ended.Store(true)
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
