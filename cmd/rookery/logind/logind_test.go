package logind

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// bus starts a private bus and returns how to connect to it.
func bus(t *testing.T) func(context.Context) (*dbus.Conn, error) {
	t.Helper()
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.Connect(strings.TrimSpace(address), dbus.WithContext(ctx))
	}
}

// login1 is a logind that hands out one end of a pipe: the other one tells when the
// lock is given up.
type login1 struct {
	t     *testing.T
	locks chan *os.File
	mute  atomic.Bool // the next Inhibit is not answered
	props *prop.Properties
}

func (l *login1) Inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || who != "rookery" || mode != "delay" {
		l.t.Errorf("asked for %s %s %s", what, who, mode)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.locks <- r
	if l.mute.CompareAndSwap(true, false) {
		<-l.t.Context().Done()
	}
	fd := dbus.UnixFD(w.Fd())
	// The bus duplicates what it sends; ours is closed when it has.
	time.AfterFunc(time.Second, func() { w.Close() })
	return fd, nil
}

func startLogind(t *testing.T, connect func(context.Context) (*dbus.Conn, error)) (*login1, *dbus.Conn) {
	t.Helper()
	conn, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l := &login1{t: t, locks: make(chan *os.File, 4)}
	if err := conn.Export(l, path, manager); err != nil {
		t.Fatal(err)
	}
	l.props, err = prop.Export(conn, path, prop.Map{manager: {
		"InhibitDelayMaxUSec":  {Value: uint64(5_000_000)},
		"PreparingForShutdown": {Value: false},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(service, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return l, conn
}

// released waits until all copies of a lock are closed.
func released(t *testing.T, lock *os.File) {
	t.Helper()
	if err := lock.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the lock is held: %v", err)
	}
}

func TestStopping(t *testing.T) {
	t.Parallel()
	connect := bus(t)
	l, conn := startLogind(t, connect)
	called, finish, calledOff := make(chan time.Duration), make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Connect: connect, Log: slog.New(slog.DiscardHandler), CalledOff: func() { close(calledOff) }, Stopping: func(ctx context.Context, within time.Duration) {
			called <- within
			<-finish
		}})
	}()
	lock := <-l.locks
	time.Sleep(1200 * time.Millisecond) // our copy of its other end is closed by now
	if err := conn.Emit(path, manager+".PrepareForShutdown", true); err != nil {
		t.Fatal(err)
	}
	if within := <-called; within != 5*time.Second-margin {
		t.Errorf("there are %s", within)
	}
	if err := lock.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the lock is not held while pods end: %v", err)
	}
	close(finish)
	released(t, lock)
	if err := conn.Emit(path, manager+".PrepareForShutdown", false); err != nil { // called off
		t.Fatal(err)
	}
	<-calledOff
	again := <-l.locks
	time.Sleep(100 * time.Millisecond) // it is on its way
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	released(t, again)
}

func TestNoLogind(t *testing.T) {
	t.Parallel()
	connect := bus(t)
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
	connect := bus(t)
	l, _ := startLogind(t, connect)
	l.mute.Store(true)
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
	soon(t, "a lock is asked for", l.locks)
	soon(t, "the first connection", conns)
	said.await(t, "deadline exceeded")
	lock := soon(t, "a lock is asked for again, as nobody answered", l.locks)
	said.await(t, "pods are ended in order when")

	l.props.SetMust(manager, "PreparingForShutdown", true)
	soon(t, "the second connection", conns).Close()
	released(t, lock)
	said.await(t, "closed the connection")
	soon(t, "the machine stops", stopped)

	l.props.SetMust(manager, "PreparingForShutdown", false)
	soon(t, "the third connection", conns).Close()
	soon(t, "the machine does not stop", calledOff)
	said.await(t, "closed the connection")
	lock = soon(t, "a lock is asked for once more", l.locks)
	said.await(t, "pods are ended in order when")
	soon(t, "the fourth connection", conns)
	cancel()
	if err := soon(t, "the end", ended); err != nil {
		t.Error(err)
	}
	released(t, lock)
	if len(conns)+len(stopped)+len(calledOff)+len(l.locks) != 0 {
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
