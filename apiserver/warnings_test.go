package apiserver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
)

// Work that goes on after its request was answered warns nobody and breaks nothing.
func TestWarningsAfterTheAnswer(t *testing.T) {
	ended, after := make(chan struct{}), make(chan any, 1)
	h := withWarnings(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		warning.AddWarning(r.Context(), "", "before")
		warning.AddWarning(r.Context(), "", "before")
		go func() {
			defer func() { after <- recover() }()
			<-ended
			warning.AddWarning(r.Context(), "", "after the response")
		}()
		w.WriteHeader(http.StatusGatewayTimeout)
		warning.AddWarning(r.Context(), "", "after the header")
	}))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(request.WithRequestInfo(r.Context(), &request.RequestInfo{Verb: "create"})))
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	close(ended)
	if p := <-after; p != nil {
		t.Fatalf("a late warning panicked: %v", p)
	}
	if got, want := fmt.Sprintf("%s %d %q", answer.Proto, answer.StatusCode, answer.Header["Warning"]), `HTTP/2.0 504 ["299 - \"before\""]`; got != want {
		t.Fatalf("answer %s, not %s", got, want)
	}
}
