package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

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
