package stream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// logs serves /containerLogs with the query of v1.PodLogOptions.
func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	opts, limit, err := logOptions(q, time.Now())
	if err != nil {
		s.fail(w, &Error{http.StatusBadRequest, err.Error()})
		return
	}
	c, err := s.pods.Container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"), q.Get("previous") == "true")
	if err != nil {
		s.fail(w, err)
		return
	}
	out := &flusher{w: w, left: limit}
	var stdout, stderr io.Writer = out, out
	switch q.Get("stream") {
	case "Stdout":
		stderr = io.Discard
	case "Stderr":
		stdout = io.Discard
	case "", "All":
	default:
		s.fail(w, &Error{http.StatusBadRequest, fmt.Sprintf("invalid stream type %q", q.Get("stream"))})
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if err := s.runtime.Logs(r.Context(), c.ID, opts, stdout, stderr); err != nil && !errors.Is(err, errLimit) && r.Context().Err() == nil {
		if !out.begun() {
			s.fail(w, err)
			return
		}
		s.log.Warn("read logs", "container", c.ID, "error", err)
	}
}

func logOptions(q url.Values, now time.Time) (opts runtime.LogOptions, limit int64, err error) {
	number := func(name string) (n int64, set bool) {
		v := q.Get(name)
		if v == "" || err != nil {
			return 0, false
		}
		if n, err = strconv.ParseInt(v, 10, 64); err != nil || n < 0 {
			err = fmt.Errorf("%s: %q is not a number of at least 0", name, v)
			return 0, false
		}
		return n, true
	}
	opts.Follow = q.Get("follow") == "true"
	opts.Timestamps = q.Get("timestamps") == "true"
	if n, ok := number("tailLines"); ok {
		opts.Tail = &n
	}
	if n, ok := number("sinceSeconds"); ok {
		opts.Since = now.Add(-time.Duration(n) * time.Second)
	}
	limit = -1
	if n, ok := number("limitBytes"); ok {
		limit = n
	}
	if v := q.Get("sinceTime"); v != "" && err == nil {
		if opts.Since, err = time.Parse(time.RFC3339, v); err != nil {
			err = fmt.Errorf("sinceTime: %q is not a time like 2006-01-02T15:04:05Z", v)
		}
	}
	return opts, limit, err
}

// errLimit ends a log that has reached limitBytes.
var errLimit = errors.New("limit reached")

// flusher sends each piece at once: someone may be following. Both streams of a
// container write to it.
type flusher struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	left    int64 // negative: no limit
	started bool
}

func (f *flusher) begun() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.started
}

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = true
	over := f.left >= 0 && int64(len(p)) > f.left
	if over {
		p = p[:f.left]
	}
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	if f.left >= 0 {
		f.left -= int64(n)
	}
	if flush, ok := f.w.(http.Flusher); ok {
		flush.Flush()
	}
	if over {
		return n, errLimit
	}
	return n, nil
}
