package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// stub describes two groups; err is what it says instead, slow is waited for by Document.
type stub struct {
	err   error
	slow  map[string]chan struct{}
	began chan string
	built atomic.Int32
}

func (s *stub) Groups(context.Context) (map[string]string, error) {
	return map[string]string{"apis/a.test/v1": "1", "apis/b.test/v1": "1"}, s.err
}

func (s *stub) Document(_ context.Context, gv string) ([]byte, error) {
	s.built.Add(1)
	if wait := s.slow[gv]; wait != nil {
		s.began <- gv
		<-wait
	}
	return []byte(`"` + gv + `"`), nil
}

func (s *stub) Swagger(context.Context) (string, func() (definitions, paths map[string]json.RawMessage, err error), error) {
	return "", nil, s.err
}

func get(ctx context.Context, h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestEmbeddedDocumentsAskNoSource(t *testing.T) {
	h := Handler(&stub{err: errors.New("there is no leader")})
	for path, want := range map[string]int{
		"/openapi/v3/apis/apps/v1": 200, "/openapi/v3/api/v1": 200, "/openapi/v3": 500, "/openapi/v3/apis/a.test/v1": 500,
	} {
		if code, body := get(t.Context(), h, path); code != want {
			t.Errorf("%s: %d, want %d: %.100s", path, code, want, body)
		}
	}
	if code, _ := get(t.Context(), Handler(&stub{}), "/openapi/v3/apis/c.test/v1"); code != 404 {
		t.Errorf("a group that is not there: %d", code)
	}
}

// While a document is built, all that is there is served, and who waits for his turn may leave.
func TestOneIsBuiltAtATime(t *testing.T) {
	finish := make(chan struct{})
	s := &stub{slow: map[string]chan struct{}{"apis/b.test/v1": finish}, began: make(chan string, 2)}
	h := Handler(s)
	ask := func(path string) {
		t.Helper()
		if code, body := get(t.Context(), h, path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	ask("/openapi/v3/apis/a.test/v1")
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask("/openapi/v3/apis/b.test/v1")
	}()
	<-s.began
	meanwhile := make(chan struct{})
	go func() {
		defer close(meanwhile)
		ask("/openapi/v3/apis/a.test/v1")
		ask("/openapi/v3")
		left, leave := context.WithCancel(t.Context())
		leave()
		if code, _ := get(left, h, "/openapi/v3/apis/b.test/v1"); code != 500 {
			t.Errorf("who has left got %d", code)
		}
	}()
	select {
	case <-meanwhile:
	case <-time.After(time.Minute):
		t.Error("others wait for a document that is built")
	}
	close(finish)
	<-done
	ask("/openapi/v3/apis/b.test/v1")
	if n := s.built.Load(); n != 2 {
		t.Errorf("%d documents were built, want 2", n)
	}
}
