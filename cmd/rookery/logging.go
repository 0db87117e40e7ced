package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"gopkg.in/natefinch/lumberjack.v2"
)

// newLog writes what happens for a human to read. What Kubernetes' own packages
// say is one level less than they think: their news are of no use at an edge
// site, and their errors are mostly steps of a retry.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(&demoting{Handler: slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}), level: level})
}

type demoting struct {
	slog.Handler
	level slog.Level
}

// Handle tells whose record it is by the function that logged it.
func (h *demoting) Handle(ctx context.Context, r slog.Record) error {
	frame, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
	if strings.HasPrefix(frame.Function, "k8s.io/") {
		r.Level -= slog.LevelWarn - slog.LevelInfo
		if r.Level < h.level {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h *demoting) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &demoting{Handler: h.Handler.WithAttrs(attrs), level: h.level}
}

func (h *demoting) WithGroup(name string) slog.Handler {
	return &demoting{Handler: h.Handler.WithGroup(name), level: h.level}
}

// rotated is a log of its own, of at most size MB a file and files old ones. It is opened
// once here, so that a path that cannot work is told now and not in a log.
func rotated(setting, path string, size, files int) (*lumberjack.Logger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return &lumberjack.Logger{Filename: path, MaxSize: size, MaxBackups: files, Compress: true}, nil
}
