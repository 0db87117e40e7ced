package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestEchoLeavesHTTP(t *testing.T) {
	srv := httptest.NewServer(newApp(func(string) string { return "" }).handler())
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: parrot\r\n\r\nhello\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	if line, err := in.ReadString('\n'); line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestSidecarServesTheApplicationsCounts(t *testing.T) {
	env := map[string]string{"POD_NAME": "hello-1", "PEER_NAME": "h1", "GREETING": "Ahoy", "PASSWORD": "x", "SHARED_DIR": t.TempDir()}
	a := newApp(func(k string) string { return env[k] })
	side := counts(a.dir)

	w := httptest.NewRecorder()
	if side.ServeHTTP(w, httptest.NewRequest("GET", "/counts", nil)); w.Code != 503 {
		t.Fatalf("before anything was recorded: %d, want 503", w.Code)
	}
	for range 3 {
		w = httptest.NewRecorder()
		a.handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	}
	if got := w.Body.String(); !strings.HasPrefix(got, "Ahoy from pod hello-1 on peer h1 ") || strings.Contains(got, "secret x)") {
		t.Errorf("answer %q", got)
	}
	if err := a.write(a.requests.Load()); err != nil {
		t.Fatal(err)
	}
	w = httptest.NewRecorder()
	side.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if want := `hello_requests_total{pod="hello-1"} 3`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("metrics %q lack %q", w.Body, want)
	}
}
