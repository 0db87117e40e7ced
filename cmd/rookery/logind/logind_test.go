package logind

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
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
	// The bus duplicates what it sends; ours is closed when it has.
	time.AfterFunc(time.Second, func() { w.Close() })
	return dbus.UnixFD(w.Fd()), nil
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
	if _, err := prop.Export(conn, path, prop.Map{manager: {"InhibitDelayMaxUSec": {Value: uint64(5_000_000)}}}); err != nil {
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
