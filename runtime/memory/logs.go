package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// output is what a container printed, line by line, with those who listen.
type output struct {
	mu       sync.Mutex
	lines    []line
	partial  [2][]byte // of stdout and stderr: what no newline has ended yet
	closed   bool
	changed  chan struct{} // closed and replaced by each change
	attached map[*runtime.Streams]struct{}
}

type line struct {
	at     time.Time
	stderr bool
	text   []byte // with its newline, if there was one
}

func newOutput() *output {
	return &output{closed: true, changed: make(chan struct{}), attached: map[*runtime.Streams]struct{}{}}
}

func (o *output) open() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = false
}

// close flushes what has no newline and lets followers end.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, rest := range o.partial {
		if len(rest) > 0 {
			o.lines = append(o.lines, line{time.Now(), i == 1, rest})
		}
		o.partial[i] = nil
	}
	o.closed = true
	o.wake()
}

// size is how many bytes were printed.
func (o *output) size() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.partial[0]) + len(o.partial[1])
	for _, l := range o.lines {
		n += len(l.text)
	}
	return int64(n)
}

// wake is called with the lock.
func (o *output) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

type writer struct {
	o      *output
	stderr bool
}

func (o *output) writer(stderr bool) io.Writer { return writer{o, stderr} }

// Write drops what a killed process still prints, as a pipe without a reader does.
func (w writer) Write(p []byte) (int, error) {
	targets, err := w.record(p)
	if err != nil {
		return 0, err
	}
	for _, to := range targets { // a listener that fails is gone; the process must not notice
		_, _ = to.Write(p)
	}
	return len(p), nil
}

func (w writer) record(p []byte) ([]io.Writer, error) {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	if w.o.closed {
		return nil, io.ErrClosedPipe
	}
	i := 0
	if w.stderr {
		i = 1
	}
	buf := append(w.o.partial[i], p...)
	for {
		n := bytes.IndexByte(buf, '\n')
		if n < 0 {
			break
		}
		w.o.lines = append(w.o.lines, line{time.Now(), w.stderr, bytes.Clone(buf[:n+1])})
		buf = buf[n+1:]
	}
	w.o.partial[i] = bytes.Clone(buf)
	w.o.wake()
	var targets []io.Writer
	for s := range w.o.attached {
		to := s.Stdout
		if w.stderr && !s.TTY {
			to = s.Stderr
		}
		if to != nil {
			targets = append(targets, to)
		}
	}
	return targets, nil
}

// attach adds a listener until the returned function is called.
func (o *output) attach(s *runtime.Streams) func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attached[s] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.attached, s)
	}
}

// next returns the lines from i on, whether more may come, and what tells so.
func (o *output) next(i int) (lines []line, open bool, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lines[i:len(o.lines):len(o.lines)], !o.closed, o.changed
}

// Logs implements runtime.Runtime.
func (r *Runtime) Logs(ctx context.Context, id string, opts runtime.LogOptions, stdout, stderr io.Writer) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("read logs of container %s: %w", id, err)
	}
	c := r.m.containers[id]
	r.m.mu.Unlock()
	if c == nil {
		return fmt.Errorf("read logs of container %s: %w", id, runtime.ErrNotFound)
	}
	for i := 0; ; {
		lines, open, changed := c.out.next(i)
		first := 0
		if i == 0 && opts.Tail != nil {
			first = max(0, len(lines)-int(*opts.Tail))
			opts.Tail = nil
		}
		for _, l := range lines[first:] {
			if err := l.print(opts, stdout, stderr); err != nil {
				return fmt.Errorf("write logs of container %s: %w", c.spec.Name, err)
			}
		}
		i += len(lines)
		if !opts.Follow || !open {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (l line) print(opts runtime.LogOptions, stdout, stderr io.Writer) error {
	to := stdout
	if l.stderr {
		to = stderr
	}
	if to == nil || l.at.Before(opts.Since) {
		return nil
	}
	text := l.text
	if opts.Timestamps {
		text = append([]byte(l.at.Format(time.RFC3339Nano)+" "), l.text...)
	}
	_, err := to.Write(text)
	return err
}
