package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A client that stops in the middle of its request is told so; one that is slow but goes on, and
// one whose answer is slow to begin, are told apart from it.
func TestSlowRequestBody(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.URL.Path == "/hang" {
			<-hang
		}
		fmt.Fprintf(w, "%d bytes", len(body))
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(hang) })
	w := newWorld(t, nil)
	w.service("web", "n1="+srv.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/timeout: 5s"))
	w.until(200, "http://a.example/")
	open := func(path string, size int) net.Conn {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http))
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n", path, size)
		return conn
	}
	answer := func(what string, conn net.Conn, want int) string {
		t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(t, err)
		if resp.StatusCode != want {
			t.Errorf("%s: %s %q, want %d", what, resp.Status, text, want)
		}
		return string(text)
	}
	silent, halfway, hanging := open("/", 10), open("/", 10), open("/hang", 3)
	fmt.Fprint(halfway, "hel")
	fmt.Fprint(hanging, "all")
	answer("no body", silent, 408)
	answer("half a body", halfway, 408)
	answer("no answer", hanging, 504)
	slow := open("/", 30)
	for range 30 { // longer than the time for one read
		fmt.Fprint(slow, "x")
		time.Sleep(200 * time.Millisecond)
	}
	if got := answer("slow", slow, 200); got != "30 bytes" {
		t.Errorf("slow: %q", got)
	}
}

// An answer that has begun goes on for longer than it may take to begin.
func TestEventsOutliveTheTimeout(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 15 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	}))
	t.Cleanup(srv.Close)
	w := newWorld(t, nil)
	w.service("web", "n1="+srv.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/timeout: 500ms"))
	for _, url := range []string{"http://a.example/", "https://a.example/"} {
		resp, text := w.until(200, url)
		if strings.Count(text, "data: ") != 15 || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("%s: %q", url, text)
		}
	}
}

// Once both ends talk, either may pause for longer than an answer may take to begin.
func TestStreamsBothWays(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control, in := http.NewResponseController(w), bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(w, line)
			control.Flush()
		}
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	w := newWorld(t, nil)
	w.service("web", "n1="+srv.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/timeout: 5s, ingress.rookery.io/backend-protocol: h2c"))
	w.until(200, "https://a.example/")
	body, sent := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://a.example/", body)
	must(t, err)
	go fmt.Fprint(sent, "one\n")
	resp, err := w.transport().RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for _, want := range []string{"one\n", "two\n"} {
		if got, err := in.ReadString('\n'); err != nil || got != want {
			t.Fatalf("%q %v, want %q", got, err, want)
		}
		time.Sleep(6 * time.Second) // longer than an answer may take to begin
		go fmt.Fprint(sent, "two\n")
	}
	sent.Close()
}

// Endpoints that speak TLS, or HTTP/2 without it, are spoken to so, with bodies both ways.
func TestBackendProtocols(t *testing.T) {
	proto := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s tls=%v %s", r.Proto, r.TLS != nil, body)
	})
	for annotation, want := range map[string]string{
		"https": "tls=true ", "h2c": "HTTP/2.0 tls=false ", "http": "HTTP/1.1 tls=false ",
	} {
		t.Run(annotation, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(proto)
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetHTTP1(annotation != "h2c")
			srv.Config.Protocols.SetUnencryptedHTTP2(annotation == "h2c")
			if annotation == "https" {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			t.Cleanup(srv.Close)
			w := newWorld(t, nil)
			w.service("web", "n1="+srv.Listener.Addr().String())
			w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/backend-protocol: "+annotation))
			w.until(200, "http://a.example/")
			sent := strings.Repeat("bytes ", 100_000)
			_, text, err := w.ask("POST", "http://a.example/", strings.NewReader(sent))
			must(t, err)
			if head, body, _ := strings.Cut(text, "bytes "); !strings.Contains(head, want) || "bytes "+body != sent {
				t.Errorf("%q and %d bytes, want %q and %d", head, len(body), want, len(sent))
			}
		})
	}
}

// What is asked, how it ended and how often another endpoint was tried is counted.
func TestRequestsAreCounted(t *testing.T) {
	metrics := NewMetrics()
	w := newWorld(t, func(cfg *Config) { cfg.Metrics = metrics })
	down, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, down.Close()) // refuses
	w.service("web", "n1="+backendServer(t, "web"), "n1="+down.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, ""))
	w.until(200, "http://a.example/")
	w.until(404, "http://b.example/")
	poll(t, func() error { // each second one begins with the endpoint that is down, which is then left alone for a while
		if _, _, err := w.ask("GET", "http://a.example/", nil); err != nil {
			return err
		}
		if n := testutil.ToFloat64(metrics.retries.WithLabelValues("shop/one")); n < 1 {
			return fmt.Errorf("%v retries are counted", n)
		}
		return nil
	})
	poll(t, func() error { // they are noted after they are answered
		if n := testutil.ToFloat64(metrics.requests.WithLabelValues("shop/one", "200")); n < 2 {
			return fmt.Errorf("%v good answers are counted", n)
		}
		if n := testutil.ToFloat64(metrics.requests.WithLabelValues("", "404")); n < 1 {
			return fmt.Errorf("%v requests without an Ingress are counted", n)
		}
		return nil
	})
	if n := testutil.CollectAndCount(metrics, "rookery_ingress_request_seconds"); n != 2 {
		t.Errorf("times are kept for %d Ingresses, want for one and for none", n)
	}
}

// An answer that begins before an HTTP/1 request has come is heard, also by a client that sends no more.
func TestAnswerBeforeTheRequestHasCome(t *testing.T) {
	page := strings.Repeat("denied ", 600)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // or this server reads the request first, too
		w.WriteHeader(http.StatusUnauthorized)
		if r.URL.Path == "/page" {
			fmt.Fprint(w, page)
		}
		http.NewResponseController(w).Flush()
	}))
	t.Cleanup(srv.Close)
	w := newWorld(t, nil)
	w.service("web", "n1="+srv.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/timeout: 2s"))
	w.until(401, "http://a.example/")
	ask := func(request string, status int, body string) {
		t.Helper()
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http))
		must(t, err)
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err = io.WriteString(conn, request)
		must(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%q: %v", request, err)
			return
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != status || body != "" && string(text) != body {
			t.Errorf("%q: %s, %d bytes, %v", request, resp.Status, len(text), err)
		}
	}
	for _, head := range []string{"Content-Length: 1000000\r\n\r\n", "Content-Length: 1000\r\n\r\nfirst", "Transfer-Encoding: chunked\r\n\r\n"} {
		for path, body := range map[string]string{"/": "", "/page": page} {
			ask("POST "+path+" HTTP/1.1\r\nHost: a.example\r\n"+head, 401, body)
		}
	}
	w.service("none")
	w.ingress(`{metadata: {name: two, annotations: {ingress.rookery.io/timeout: 2s}}, spec: {rules: [{host: a.example, http: {paths: [{path: /none, pathType: Prefix, backend: {service: {name: none, port: {number: 80}}}}]}}]}}`)
	w.until(503, "http://a.example/none")
	ask("POST /none HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\n", 503, "")
}

// deadlines are what was set on a connection; first is called before the first.
type deadlines struct {
	http.ResponseWriter
	mu    sync.Mutex
	set   []time.Time
	first func()
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.set) == 0 && d.first != nil {
		d.first()
	}
	d.set = append(d.set, at)
	return nil
}

func (d *deadlines) all() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.set)
}

// A stream that is answered just before its client is waited for has no deadline nevertheless, and
// what is read after the exchange is over leaves the connection alone.
func TestDeadlinesOfARequest(t *testing.T) {
	conn := &deadlines{ResponseWriter: httptest.NewRecorder()}
	in, client := io.Pipe()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	body := &pacedBody{ReadCloser: in, within: time.Minute, timer: timer, control: http.NewResponseController(conn), streams: true}
	conn.first = func() { body.answered.Store(true) }
	go fmt.Fprint(client, "x")
	_, err := body.Read(make([]byte, 1))
	must(t, err)
	if set := conn.all(); len(set) == 0 || !set[len(set)-1].IsZero() {
		t.Errorf("an answered stream has the deadlines %v", set)
	}

	conn = &deadlines{ResponseWriter: httptest.NewRecorder()}
	in, client = io.Pipe()
	body = &pacedBody{ReadCloser: in, within: time.Minute, timer: timer, control: http.NewResponseController(conn)}
	done := make(chan error, 1)
	go func() {
		_, err := body.Read(make([]byte, 1))
		done <- err
	}()
	poll(t, func() error {
		if len(conn.all()) == 0 {
			return fmt.Errorf("nothing is waited for")
		}
		return nil
	})
	body.disown()
	before := len(conn.all())
	must(t, client.Close())
	if err := <-done; err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if set := conn.all(); len(set) != before {
		t.Errorf("set after the exchange: %v", set[before:])
	}
}
