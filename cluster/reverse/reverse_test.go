package reverse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// taken is what came over a kept connection.
type taken struct {
	streams chan net.Conn
	packets chan string
}

func (k taken) Stream(kind Kind, conn net.Conn) {
	go fmt.Fprintf(conn, "%c", kind)
	k.streams <- conn
}

func (k taken) Packet(b []byte, _ net.Addr) { k.packets <- string(b) }

// ends joins a keeper with what the test makes of the other end.
func ends(t *testing.T) (*Keeper, taken, net.Conn, chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	k := taken{make(chan net.Conn, 2*maxStreams), make(chan string, 8)}
	keeper, err := NewKeeper(out, k, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { ended <- keeper.Run(ctx) }()
	return keeper, k, in, ended
}

func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestStreamsAndPackets(t *testing.T) {
	_, k, in, ended := ends(t)
	caller, err := NewCaller(in, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- caller.Run(context.Background()) }()
	for _, kind := range []Kind{Port, Gossip} {
		conn, err := caller.Dial(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 1)
		if _, err := io.ReadFull(conn, said); err != nil || Kind(said[0]) != kind {
			t.Errorf("a stream for %c was taken as %s: %v", kind, said, err)
		}
		read := make(chan error, 1)
		go func() { _, err := conn.Read(said); read <- err }()
		conn.Close()
		if err := within(t, read); err == nil {
			t.Error("a read outlived its connection")
		}
	}
	upgraded(t, caller, k)
	large := strings.Repeat("x", LargestPacket)
	for _, packet := range []string{"a", large, large + "x", "", "b"} {
		caller.Send([]byte(packet))
	}
	for _, want := range []string{"a", large, "b"} {
		if got := within(t, k.packets); got != want {
			t.Errorf("%d bytes came for %d", len(got), len(want))
		}
	}
	caller.Close()
	if err := within(t, ended); err == nil {
		t.Error("the keeper did not notice that the connection was lost")
	}
	within(t, done)
}

// upgraded holds what net/http and crypto/tls do to a connection that is upgraded: a read is
// called off by a deadline, and the connection goes on.
func upgraded(t *testing.T, caller *Caller, k taken) {
	t.Helper()
	far, err := caller.Dial(t.Context(), Port)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near := func() net.Conn {
		for { // those of before may be among them
			c := within(t, k.streams)
			if c.(*stream).StreamID() == far.(*stream).StreamID() {
				return c
			}
		}
	}()
	read := make(chan error, 1)
	go func() { _, err := near.Read(make([]byte, 1)); read <- err }()
	if err := near.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := within(t, read); err != os.ErrDeadlineExceeded { // which is temporary: crypto/tls looks at that
		t.Errorf("a read that was called off ended with %v", err)
	}
	if err := near.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(far, "on"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(near, got); err != nil || string(got) != "on" {
		t.Errorf("after that came %q, %v", got, err)
	}
}

// What the other end may not do costs it its streams, and nobody anything else.
func TestKeeperHoldsItsOwn(t *testing.T) {
	_, k, in, _ := ends(t)
	session, err := yamux.Server(in, config(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	open := func(first string) net.Conn {
		s, err := session.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if _, err := io.WriteString(s, first); err != nil {
			t.Fatal(err)
		}
		if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if _, err := open("?").Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a stream of an unknown kind was not closed: %v", err)
	}
	var all []net.Conn
	for range maxStreams + 8 {
		all = append(all, open("p"))
	}
	refused := 0
	for _, s := range all {
		if _, err := s.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused < 8 || refused == len(all) {
		t.Errorf("%d of %d streams were refused", refused, len(all))
	}
	for range len(all) - refused {
		within(t, k.streams).Close()
	}
	for _, s := range all {
		s.Close()
	}
	for deadline := time.Now().Add(30 * time.Second); ; { // the last ones are on their way out
		if _, err := open("g").Read(make([]byte, 1)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no place again")
		}
	}
}

// A caller's streams are its own to open: a keeper that opens one is hung up on.
func TestCallerTakesNoStreams(t *testing.T) {
	l, r := net.Pipe()
	caller, err := NewCaller(l, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- caller.Run(context.Background()) }()
	session, err := yamux.Client(r, config(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	_, _ = session.OpenStream() // which may hear of the end already
	if err := within(t, done); err == nil {
		t.Error("the caller took a stream")
	}
}

// A connection that is stuck holds nobody up beyond a deadline.
func TestStuckConnection(t *testing.T) {
	near, far := net.Pipe() // without a buffer, and nobody reads
	defer far.Close()
	c := config(slog.New(slog.DiscardHandler))
	c.ConnectionWriteTimeout, c.StreamOpenTimeout = time.Hour, time.Hour // so that deadlines are what ends all below
	session, err := yamux.Server(near, c)
	if err != nil {
		t.Fatal(err)
	}
	caller := &Caller{session: session}
	defer caller.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	dialled := make(chan error, 1)
	go func() { _, err := caller.Dial(ctx, Gossip); dialled <- err }()
	if err := within(t, dialled); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream was opened: %v", err)
	}

	read := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, far); read <- err }()
	s, err := caller.Dial(t.Context(), Gossip)
	if err != nil {
		t.Fatal(err)
	}
	if err := far.SetReadDeadline(time.Unix(1, 0)); err != nil { // stuck again
		t.Fatal(err)
	}
	within(t, read)
	written := make(chan error, 1)
	go func() {
		if err := s.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			written <- err
			return
		}
		_, err := s.Write([]byte("x"))
		written <- err
	}()
	if err := within(t, written); err != os.ErrDeadlineExceeded {
		t.Errorf("a write ended with %v", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if err := within(t, closed); err != nil {
		t.Error(err)
	}
}
