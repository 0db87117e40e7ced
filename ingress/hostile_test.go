package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// hostile are requests that two programs may read differently, and so many that they end in
// memory. Their answer is want; "" is any but 200. A pod never sees what is hidden in them.
var hostile = []struct{ name, request, want string }{
	{"two lengths", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"},
	{"a list of lengths", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0, 37\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"},
	{"a length with a sign", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"},
	{"an unknown transfer coding", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", "501"},
	{"two transfer codings", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", ""},
	{"a space before the colon", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"},
	{"a line that goes on", "POST / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n Transfer-Encoding: chunked\r\nContent-Length: nine\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n", "400"},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "400"},
	{"a chunk that is no number", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nG\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n", ""},
	{"a header too large", "GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "431"},
	{"too many headers", "GET / HTTP/1.1\r\nHost: a.example\r\n" + strings.Repeat("X: y\r\n", 20_000) + "\r\n", "431"},
	{"a null byte", "GET / HTTP/1.1\r\nHost: a.example\r\nX: a\x00b\r\n\r\n", "400"},
	{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", "400"},
}

func TestHostileRequests(t *testing.T) {
	var mu sync.Mutex
	var uris []string
	w := newWorld(t, nil)
	w.service("web", "n1="+pod(t, func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		uris = append(uris, r.RequestURI)
	}))
	w.ingress(fmt.Sprintf(oneRule, ""))
	w.until(200, "http://a.example/")
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			switch codes := w.send(t, tt.request); {
			case len(codes) != 1:
				t.Errorf("answers %v, want one", codes)
			case tt.want == "" && codes[0] == "200", tt.want != "" && codes[0] != tt.want:
				t.Errorf("answered %s, want %q", codes[0], tt.want)
			}
		})
	}
	// A length beside chunks is legal and counts for nothing; what follows is a request of its own, and
	// goes by the rules as one.
	if codes := w.send(t, "POST /first HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: b.example\r\n\r\n"); len(codes) == 0 || codes[0] != "200" || len(codes) > 1 && codes[1] != "404" {
		t.Errorf("a length beside chunks: %v", codes)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, uri := range uris {
		if uri == "/hidden" {
			t.Error("a pod saw a hidden request")
		}
	}
}

// pod serves HTTP and calls asked for each request.
func pod(t *testing.T, asked func(*http.Request)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked(r)
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

// send writes bytes as they are, and returns the codes of all answers until the connection is closed
// or nothing comes any more.
func (w *world) send(t *testing.T, raw string) (codes []string) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http))
	must(t, err)
	defer conn.Close()
	go io.WriteString(conn, raw) // the proxy may hang up before it is all written
	in := bufio.NewReader(conn)
	must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return codes
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		codes = append(codes, fmt.Sprint(resp.StatusCode))
		if err != nil || resp.Close {
			return codes
		}
		// Another answer comes at once or not at all.
		must(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
	}
}
