// Package logind is a systemd-logind for tests, on a system bus of its own: it hands out
// locks, tells whether they are held, and says that the machine is about to stop. What
// listens to it is connected by the test.
package logind

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	service = "org.freedesktop.login1"
	path    = dbus.ObjectPath("/org/freedesktop/login1")
	manager = "org.freedesktop.login1.Manager"
)

// Bus starts a bus that ends with the test and returns its address. listen is an address
// to be reached at, such as unix:path=/run/bus; empty: any.
func Bus(t *testing.T, listen string) string {
	t.Helper()
	args := []string{"--session", "--nofork", "--print-address"}
	if listen != "" {
		args = append(args, "--address="+listen)
	}
	cmd := exec.Command("dbus-daemon", args...)
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
	return strings.TrimSpace(address)
}

// Logind is one that has started.
type Logind struct {
	// Locks are those that were asked for, in order.
	Locks chan *Lock
	// Mute leaves the next one who asks for a lock without an answer.
	Mute atomic.Bool

	t     *testing.T
	conn  *dbus.Conn
	props *prop.Properties
}

// Start starts one that ends with the test, on the bus of that address. It says that it
// waits for who holds a lock as long as delay.
func Start(t *testing.T, address string, delay time.Duration) *Logind {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l := &Logind{t: t, conn: conn, Locks: make(chan *Lock, 4)}
	if err := conn.Export(inhibitor{l}, path, manager); err != nil {
		t.Fatal(err)
	}
	l.props, err = prop.Export(conn, path, prop.Map{manager: {
		"InhibitDelayMaxUSec":  {Value: uint64(delay / time.Microsecond)},
		"PreparingForShutdown": {Value: false},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(service, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return l
}

// Prepare changes what it says when it is asked whether the machine is about to stop.
func (l *Logind) Prepare(stopping bool) { l.props.SetMust(manager, "PreparingForShutdown", stopping) }

// Announce is Prepare, and tells all who listen.
func (l *Logind) Announce(stopping bool) {
	l.t.Helper()
	l.Prepare(stopping)
	if err := l.conn.Emit(path, manager+".PrepareForShutdown", stopping); err != nil {
		l.t.Fatal(err)
	}
}

// inhibitor has the methods that are called over the bus.
type inhibitor struct{ l *Logind }

// Inhibit hands out a lock.
func (i inhibitor) Inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || who != "rookery" || mode != "delay" {
		i.l.t.Errorf("asked for %s %s %s", what, who, mode)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	i.l.Locks <- &Lock{r, w}
	if i.l.Mute.CompareAndSwap(true, false) {
		<-i.l.t.Context().Done()
	}
	return dbus.UnixFD(w.Fd()), nil
}

// Lock is a pipe whose other end the one has who asked for it. Its methods may be called
// once that one has it.
type Lock struct{ held, ours *os.File }

// Held fails the test if the lock has been given up.
func (l *Lock) Held(t *testing.T) {
	t.Helper()
	if err := l.read(300 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the lock is not held: %v", err)
	}
}

// Released waits until the lock is given up.
func (l *Lock) Released(t *testing.T) {
	t.Helper()
	if err := l.read(time.Minute); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the lock is held")
	}
}

// read ends with the last copy of the other end.
func (l *Lock) read(within time.Duration) error {
	l.ours.Close()
	if err := l.held.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err := l.held.Read(make([]byte, 1))
	return err
}
