package logind

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	machine "github.com/rundigitalplatform/rookery/test/logind"
)

// bus starts a private bus and returns its address and how to connect to it.
func bus(t *testing.T) (string, func(context.Context) (*dbus.Conn, error)) {
	t.Helper()
	address := machine.Bus(t, "")
	return address, func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.Connect(address, dbus.WithContext(ctx))
	}
}

func TestStopping(t *testing.T) {
	t.Parallel()
	address, connect := bus(t)
	l := machine.Start(t, address, 5*time.Second)
	said := make(lines, 8)
	called, finish, calledOff := make(chan time.Duration), make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Connect: connect, Log: slog.New(slog.NewTextHandler(said, nil)), CalledOff: func() { close(calledOff) }, Stopping: func(ctx context.Context, within time.Duration) {
			called <- within
			<-finish
		}})
	}()
	lock := soon(t, "a lock is asked for", l.Locks)
	said.await(t, "pods are ended in order when")
	l.Announce(true)
	if within := soon(t, "the machine stops", called); within != 5*time.Second-margin {
		t.Errorf("there are %s", within)
	}
	lock.Held(t)
	close(finish)
	lock.Released(t)
	l.Announce(false)
	soon(t, "the machine does not stop", calledOff)
	again := soon(t, "a lock is asked for again", l.Locks)
	said.await(t, "pods are ended in order when")
	cancel()
	if err := soon(t, "the end", ended); err != nil {
		t.Error(err)
	}
	again.Released(t)
}

func TestNoLogind(t *testing.T) {
	t.Parallel()
	_, connect := bus(t)
	stopping := func(context.Context, time.Duration) { t.Error("nobody said so") }
	if err := Run(t.Context(), Config{Connect: connect, Log: slog.New(slog.DiscardHandler), Stopping: stopping}); !errors.Is(err, ErrNone) {
		t.Errorf("a bus without logind: %v", err)
	}
	none := func(context.Context) (*dbus.Conn, error) { return nil, os.ErrNotExist }
	if err := Run(t.Context(), Config{Connect: none, Log: slog.New(slog.DiscardHandler), Stopping: stopping}); !errors.Is(err, ErrNone) {
		t.Errorf("no bus: %v", err)
	}
}

// TestBusBreaks: what happened while there was no connection is made up for.
func TestBusBreaks(t *testing.T) {
	t.Parallel()
	address, connect := bus(t)
	l := machine.Start(t, address, 5*time.Second)
	l.Mute.Store(true)
	conns, stopped, calledOff := make(chan *dbus.Conn, 8), make(chan bool, 8), make(chan bool, 8)
	said := make(lines, 8)
	log := slog.New(slog.NewTextHandler(said, nil))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{
			Connect: func(ctx context.Context) (*dbus.Conn, error) {
				conn, err := connect(ctx)
				conns <- conn
				return conn, err
			},
			Log:       log,
			Stopping:  func(context.Context, time.Duration) { stopped <- true },
			CalledOff: func() { calledOff <- true },
		})
	}()
	soon(t, "a lock is asked for", l.Locks)
	soon(t, "the first connection", conns)
	said.await(t, "deadline exceeded")
	lock := soon(t, "a lock is asked for again, as nobody answered", l.Locks)
	said.await(t, "pods are ended in order when")

	l.Prepare(true)
	soon(t, "the second connection", conns).Close()
	lock.Released(t)
	said.await(t, "closed the connection")
	soon(t, "the machine stops", stopped)

	l.Prepare(false)
	soon(t, "the third connection", conns).Close()
	soon(t, "the machine does not stop", calledOff)
	said.await(t, "closed the connection")
	lock = soon(t, "a lock is asked for once more", l.Locks)
	said.await(t, "pods are ended in order when")
	soon(t, "the fourth connection", conns)
	cancel()
	if err := soon(t, "the end", ended); err != nil {
		t.Error(err)
	}
	lock.Released(t)
	if len(conns)+len(stopped)+len(calledOff)+len(l.Locks) != 0 {
		t.Error("something was done twice")
	}
}

// lines are what a log says.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l lines) await(t *testing.T, want string) {
	t.Helper()
	if line := soon(t, want, l); !strings.Contains(line, want) {
		t.Errorf("the log says %s instead of %s", line, want)
	}
}

func soon[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatalf("waited for a minute: %s", what)
		panic("unreachable")
	}
}
