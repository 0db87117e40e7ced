package probe

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/kubernetes/pkg/probe"
)

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if !r.Close || r.Host != "virtual" || r.Header.Get("X-A") != "1" {
			t.Errorf("got %q, close=%v, %v", r.Host, r.Close, r.Header)
		}
		io.WriteString(w, "fine")
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("x", 1<<20)) })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "secret", http.StatusServiceUnavailable) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/long", http.StatusFound) })
	mux.HandleFunc("/lost", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.9:1/", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer garbage.Close()
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "SSH-2.0-OpenSSH\r\n")
			conn.Close()
		}
	}()

	for _, tt := range []struct {
		url    string
		want   probe.Result
		output string
	}{
		{plain.URL + "/ok", probe.Success, "fine"},
		{secure.URL + "/ok", probe.Success, "fine"},
		{plain.URL + "/long", probe.Success, "xxx"},
		{plain.URL + "/bad", probe.Failure, "HTTP probe failed with statuscode: 503"},
		{plain.URL + "/moved", probe.Success, "xxx"},
		{plain.URL + "/lost", probe.Failure, "HTTP probe failed with statuscode: 503"},
		{plain.URL + "/away", probe.Warning, "Probe terminated redirects"},
		{plain.URL + "/slow", probe.Failure, "no answer within 300ms"},
		{"http://" + silent.Addr().String() + "/", probe.Failure, "no answer within 300ms"},
		{"http://" + garbage.Addr().String() + "/", probe.Failure, "malformed HTTP"},
		{"http://127.0.0.1:1/", probe.Failure, "connection refused"},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		req := &http.Request{Method: "GET", URL: u, Host: "virtual", Header: http.Header{"X-A": {"1"}}}
		timeout := 20 * time.Second
		if strings.HasPrefix(tt.output, "no answer") {
			timeout = 300 * time.Millisecond
		}
		began := time.Now()
		result, output, err := newHTTPProber().Probe(t.Context(), req, timeout)
		if err != nil || result != tt.want || !strings.Contains(output, tt.output) || strings.Contains(output, "secret") {
			t.Errorf("%s: %s, %.80q, %v; want %s, %q", tt.url, result, output, err, tt.want, tt.output)
		}
		if took := time.Since(began); timeout < time.Second && took > 5*time.Second {
			t.Errorf("%s took %s", tt.url, took)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	u := &url.URL{Scheme: "http", Host: silent.Addr().String(), Path: "/"}
	began := time.Now()
	if result, _, _ := newHTTPProber().Probe(ctx, &http.Request{Method: "GET", URL: u}, time.Minute); result != probe.Failure || time.Since(began) > 10*time.Second {
		t.Errorf("cancelled: %s after %s", result, time.Since(began))
	}
}
