package apiserver

import (
	"context"
	"net/http"
	"sync"

	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
	"k8s.io/apiserver/pkg/warning"
)

// withWarnings lets what handles a request warn its client, until the answer begins.
// Upstream's handlers answer a request whose time is up while its work goes on in a
// goroutine of its own: that one's warnings must touch neither the header that is being
// sent just then nor a response that is over.
func withWarnings(h http.Handler) http.Handler {
	unguarded := filters.WithWarningRecorder(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, ok := request.RequestInfoFrom(r.Context()); ok && longRunning(r, info) {
			unguarded.ServeHTTP(w, r) // never answered before its work is done
			return
		}
		to := &warned{ResponseWriter: w, warnings: http.Header{}}
		filters.WithWarningRecorder(http.HandlerFunc(func(_ http.ResponseWriter, recording *http.Request) {
			ctx := warning.WithWarningRecorder(r.Context(), &recorder{to: to, upstream: recording.Context()})
			h.ServeHTTP(responsewriter.WrapForHTTP1Or2(to), r.WithContext(ctx))
		})).ServeHTTP(headerOf{to}, r)
		to.begin()
	})
}

// warned is a response that warnings join at its beginning.
type warned struct {
	http.ResponseWriter
	mu       sync.Mutex
	begun    bool
	warnings http.Header // what upstream's recorder writes to, under mu
}

func (w *warned) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *warned) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun {
		return
	}
	w.begun = true
	for _, text := range w.warnings["Warning"] {
		w.ResponseWriter.Header().Add("Warning", text)
	}
}

func (w *warned) WriteHeader(code int) {
	w.begin()
	w.ResponseWriter.WriteHeader(code)
}

func (w *warned) Write(p []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(p)
}

// recorder is upstream's, which keeps the rules for repeated and long warnings, until
// the answer has begun.
type recorder struct {
	to       *warned
	upstream context.Context
}

func (r *recorder) AddWarning(agent, text string) {
	r.to.mu.Lock()
	defer r.to.mu.Unlock()
	if !r.to.begun {
		warning.AddWarning(r.upstream, agent, text)
	}
}

// headerOf is all of a response that upstream's recorder touches.
type headerOf struct{ *warned }

func (w headerOf) Header() http.Header { return w.warnings }
