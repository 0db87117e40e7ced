package apifuzz

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// panics keeps what the server and Kubernetes' packages say of panics: it is the
// server's log, net/http's, and hears what these packages have caught by themselves.
type panics struct {
	mu   sync.Mutex
	seen []string
}

func newPanics() *panics {
	p := &panics{}
	utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, func(_ context.Context, r any) {
		p.add(fmt.Sprintf("%v\n%s", r, debug.Stack()))
	})
	// What panics after its request has timed out comes as an error.
	utilruntime.ErrorHandlers = append(utilruntime.ErrorHandlers, func(_ context.Context, err error, msg string, _ ...any) {
		if err != nil && strings.Contains(err.Error(), "panicked: true") {
			p.add(msg + " " + err.Error())
		}
	})
	return p
}

func (p *panics) add(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.seen) < 10 {
		p.seen = append(p.seen, s)
	}
}

func (p *panics) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := strings.Join(p.seen, "\n")
	p.seen = nil
	return s
}

// Write is net/http's log.
func (p *panics) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "panic") {
		p.add(string(line))
	}
	return len(line), nil
}

func (p *panics) Enabled(context.Context, slog.Level) bool { return true }
func (p *panics) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *panics) WithGroup(string) slog.Handler            { return p }

func (p *panics) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "panic") {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool { text += fmt.Sprintf("\n%s: %v", a.Key, a.Value); return true })
		p.add(text)
	}
	return nil
}
