// Package logind hears from systemd-logind that the machine is about to stop, and
// holds that back for a moment: a delay inhibitor, as systemd's documentation on
// inhibitor locks describes it. Package cmd runs it; what is done meanwhile is the
// caller's. Machines without logind have no such moment.
package logind

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// logind's names on the bus.
const (
	service = "org.freedesktop.login1"
	path    = dbus.ObjectPath("/org/freedesktop/login1")
	manager = "org.freedesktop.login1.Manager"
)

// ErrNone says that there is no logind here.
var ErrNone = errors.New("there is no systemd-logind")

// Config says what to do.
type Config struct {
	// Connect connects to the system's bus; the connection is closed by Run.
	Connect func(ctx context.Context) (*dbus.Conn, error)
	// Stopping is called when the machine is about to stop, with a context that ends
	// when logind will not wait any longer. The machine goes on stopping when it returns.
	Stopping func(ctx context.Context, within time.Duration)
	// CalledOff is called when it does not stop after all, as after `shutdown -c`.
	CalledOff func()
	Log       *slog.Logger
}

// margin is kept of logind's time for what comes after Stopping.
const margin = 500 * time.Millisecond

// Run holds a lock and waits for the machine to stop, until ctx ends (nil). It fails
// with [ErrNone] where there is no logind, and when the bus breaks.
func Run(ctx context.Context, cfg Config) error {
	conn, err := cfg.Connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: connect to the system bus: %w", ErrNone, err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 8)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(path), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to logind: %w", err)
	}
	lock, err := inhibit(ctx, conn)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }()
	delay, err := maxDelay(conn)
	if err != nil {
		return err
	}
	cfg.Log.Info("pods are ended in order when this machine stops", "within", delay, "more", "InhibitDelayMaxSec in /etc/systemd/logind.conf")
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			if !open {
				return errors.New("the system bus closed the connection")
			}
			stopping, ok := stops(s)
			switch {
			case !ok:
			case stopping:
				within := max(delay-margin, 0)
				limited, cancel := context.WithTimeout(ctx, within)
				cfg.Stopping(limited, within)
				cancel()
				if err := lock.Close(); err != nil {
					cfg.Log.Warn("let the machine stop", "error", err)
				}
			default: // the lock was given up
				cfg.CalledOff()
				if lock, err = inhibit(ctx, conn); err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
	}
}

func stops(s *dbus.Signal) (stopping, ok bool) {
	if s.Name != manager+".PrepareForShutdown" || len(s.Body) != 1 {
		return false, false
	}
	stopping, ok = s.Body[0].(bool)
	return stopping, ok
}

// inhibit takes the lock; closing the file gives it up.
func inhibit(ctx context.Context, conn *dbus.Conn) (*os.File, error) {
	var fd dbus.UnixFD
	err := conn.Object(service, path).CallWithContext(ctx, manager+".Inhibit", 0, "shutdown", "rookery", "pods are ended in order", "delay").Store(&fd)
	var busErr dbus.Error
	if errors.As(err, &busErr) && busErr.Name == "org.freedesktop.DBus.Error.ServiceUnknown" {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("ask logind to wait for pods: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

// maxDelay is how long logind waits for anybody.
func maxDelay(conn *dbus.Conn) (time.Duration, error) {
	v, err := conn.Object(service, path).GetProperty(manager + ".InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("ask logind how long it waits: %w", err)
	}
	us, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("ask logind how long it waits: it answers %v", v)
	}
	return time.Duration(us) * time.Microsecond, nil
}
