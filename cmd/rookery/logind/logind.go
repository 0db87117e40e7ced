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
	// Connect connects to the system's bus; the connection ends with ctx, and Run closes it.
	Connect func(ctx context.Context) (*dbus.Conn, error)
	// Stopping is called when the machine is about to stop, with a context that ends
	// when logind will not wait any longer. The machine goes on stopping when it returns.
	Stopping func(ctx context.Context, within time.Duration)
	// CalledOff is called when it does not stop after all, as after `shutdown -c`.
	CalledOff func()
	Log       *slog.Logger
}

const (
	// margin is kept of logind's time for what comes after Stopping.
	margin = 500 * time.Millisecond
	// patience is with a bus that does not answer: as long as logind waits by default.
	patience = 5 * time.Second
	// A bus that broke is tried again after firstPause, and then twice as long each
	// time: it is back in a second when it was restarted.
	firstPause, longestPause = time.Second, time.Minute
)

// Run holds a lock and waits for the machine to stop, until ctx ends (nil). It fails
// with [ErrNone] where there is no logind when it begins. When the bus breaks later or
// does not answer, it says so in the log and connects again.
func Run(ctx context.Context, cfg Config) error {
	w := &watch{Config: cfg}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNone) && !w.met {
			return err
		}
		if w.held {
			w.held, pause = false, firstPause
		}
		cfg.Log.Warn("pods are not ended in order if this machine stops now", "error", err, "again", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// watch is what outlives a connection to the bus.
type watch struct {
	Config
	met      bool // there was a logind once
	held     bool // a lock was taken in this session
	stopping bool // Stopping was called, CalledOff not
}

// session is one connection, until it breaks or ctx ends.
func (w *watch) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silent := time.AfterFunc(patience, cancel) // ends also the first talk with a bus
	conn, err := w.Connect(ctx)
	if !silent.Stop() {
		return errors.New("the system bus does not answer")
	}
	if err != nil {
		return fmt.Errorf("%w: connect to the system bus: %w", ErrNone, err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 8)
	conn.Signal(signals)
	if err := listen(ctx, conn); err != nil {
		return err
	}
	// After listening, so that no change goes unseen between the two.
	now, err := ask(ctx, conn)
	if err != nil {
		return err
	}
	w.met = true
	var lock *os.File
	defer func() { lock.Close() }()
	turn := func(stopping bool) (err error) {
		if stopping {
			w.stop(ctx, now.delay)
			lock.Close() // lets the machine stop
			return nil
		}
		w.calledOff()
		if lock, err = inhibit(ctx, conn); err != nil {
			return err
		}
		w.held = true
		w.Log.Info("pods are ended in order when this machine stops", "within", now.delay, "more", "InhibitDelayMaxSec in /etc/systemd/logind.conf")
		return nil
	}
	if err := turn(now.stopping); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			if !open {
				return errors.New("the system bus closed the connection")
			}
			if stopping, ok := stops(s); ok && stopping != w.stopping {
				if err := turn(stopping); err != nil {
					return err
				}
			}
		}
	}
}

// stop tells once that the machine stops.
func (w *watch) stop(ctx context.Context, delay time.Duration) {
	if w.stopping {
		return
	}
	w.stopping = true
	within := max(delay-margin, 0)
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	w.Stopping(ctx, within)
}

func (w *watch) calledOff() {
	if w.stopping {
		w.stopping = false
		w.CalledOff()
	}
}

// stops reads a signal; ok is false for any other.
func stops(s *dbus.Signal) (stopping, ok bool) {
	if s.Name != manager+".PrepareForShutdown" || len(s.Body) != 1 {
		return false, false
	}
	stopping, ok = s.Body[0].(bool)
	return stopping, ok
}

func listen(ctx context.Context, conn *dbus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(path), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to logind: %w", err)
	}
	return nil
}

// inhibit takes the lock; closing the file gives it up.
func inhibit(ctx context.Context, conn *dbus.Conn) (*os.File, error) {
	var fd dbus.UnixFD
	if err := call(ctx, conn, manager+".Inhibit", &fd, "shutdown", "rookery", "pods are ended in order", "delay"); err != nil {
		return nil, fmt.Errorf("ask logind to wait for pods: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

// state is what logind says of itself.
type state struct {
	delay    time.Duration // how long it waits for anybody
	stopping bool          // the machine is about to stop
}

func ask(ctx context.Context, conn *dbus.Conn) (state, error) {
	var all map[string]dbus.Variant
	if err := call(ctx, conn, "org.freedesktop.DBus.Properties.GetAll", &all, manager); err != nil {
		return state{}, fmt.Errorf("ask logind how long it waits: %w", err)
	}
	us, ok := all["InhibitDelayMaxUSec"].Value().(uint64)
	stopping, too := all["PreparingForShutdown"].Value().(bool)
	if !ok || !too {
		return state{}, fmt.Errorf("ask logind how long it waits: it answers %v, %v", all["InhibitDelayMaxUSec"], all["PreparingForShutdown"])
	}
	return state{time.Duration(us) * time.Microsecond, stopping}, nil
}

// call calls a method of logind, which has one result.
func call(ctx context.Context, conn *dbus.Conn, method string, result any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := conn.Object(service, path).CallWithContext(ctx, method, 0, args...).Store(result)
	var busErr dbus.Error
	if errors.As(err, &busErr) && busErr.Name == "org.freedesktop.DBus.Error.ServiceUnknown" {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	return err
}
