package raftstore

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger is a [slog.Logger] as Raft wants it. Raft says at info what a user
// need not know, so everything below a warning is a debug message here.
type raftLogger struct {
	log  *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func slogLevel(l hclog.Level) slog.Level {
	switch {
	case l >= hclog.Error:
		return slog.LevelError
	case l == hclog.Warn:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

// Log implements [hclog.Logger], as do all that follow.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	at := slogLevel(level)
	if !l.log.Enabled(context.Background(), at) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	l.log.Log(context.Background(), at, "raft: "+msg, args...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) enabled(at slog.Level) bool { return l.log.Enabled(context.Background(), at) }
func (l *raftLogger) IsTrace() bool              { return false }
func (l *raftLogger) IsDebug() bool              { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsInfo() bool               { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsWarn() bool               { return l.enabled(slog.LevelWarn) }
func (l *raftLogger) IsError() bool              { return l.enabled(slog.LevelError) }

func (l *raftLogger) ImpliedArgs() []any { return l.args }
func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: l.log.With(args...), name: l.name, args: append(l.args[:len(l.args):len(l.args)], args...)}
}
func (l *raftLogger) Name() string                     { return l.name }
func (l *raftLogger) Named(name string) hclog.Logger   { return l.ResetNamed(l.name + "." + name) }
func (l *raftLogger) ResetNamed(n string) hclog.Logger { return &raftLogger{l.log, n, l.args} }

// SetLevel does nothing: the slog handler decides.
func (l *raftLogger) SetLevel(hclog.Level)  {}
func (l *raftLogger) GetLevel() hclog.Level { return hclog.Debug }

func (l *raftLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug).Writer()
}
