// Package reverse carries connections against the direction in which they can be made.
//
// A peer behind a firewall or NAT that lets connections only out keeps one open to each
// peer that cannot dial it: it is the [Keeper] there, and the peer at the other end is the
// [Caller], who opens streams through it wherever it would have dialled. To both sides a
// stream is the TCP connection that could not be made: what it carries (TLS with the peer's
// certificate, encrypted gossip) is as it would have been, and proves by itself who is who.
//
// The caller of this package (cluster) has made the connection, knows who is at its other end, and
// decides who keeps one to whom. Streams are multiplexed by yamux. The first byte of each says what it is for ([Kind]).
package reverse

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// Kind is what a stream is for.
type Kind byte

const (
	// Port is a connection to the keeper's TLS port.
	Port Kind = 'p'
	// Gossip is a connection to the keeper's gossip port.
	Gossip Kind = 'g'
	// packets is the one stream with the datagrams for the keeper's gossip port, each after
	// its length in two bytes, the high one first.
	packets Kind = 'u'
)

// LargestPacket is how many bytes a datagram has at most, over UDP too.
const LargestPacket = 1<<16 - 1

const (
	// writeTimeout: an answer to a ping that takes longer is none. A mobile network under load
	// may take seconds.
	writeTimeout = 10 * time.Second
	// openTimeout: the other end takes streams at once, so one that has not after that time is gone.
	openTimeout = 10 * time.Second
	// closeTimeout is how long a stream that one end has closed waits for the other one.
	closeTimeout = time.Minute
)

func config(log *slog.Logger) *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout, c.StreamOpenTimeout, c.StreamCloseTimeout = writeTimeout, openTimeout, closeTimeout
	c.LogOutput, c.Logger = nil, slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	return c
}

// stream behaves as a TCP connection does: its Close does not block and ends a read that waits, a
// write ends with its deadline, after which nothing more can be written, and a read goes on
// after one. crypto/tls takes only a temporary error for that, and whoever upgrades an HTTP
// connection relies on it.
type stream struct {
	*yamux.Stream
	until atomic.Pointer[time.Time] // the deadline of writes; nil or zero: none
}

var _ net.Conn = (*stream)(nil)

func newStream(s *yamux.Stream) *stream { return &stream{Stream: s} }

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	return n, deadline(err)
}

// Write looks at the deadline itself: yamux does not while the whole connection is stuck.
func (s *stream) Write(b []byte) (int, error) {
	until := s.until.Load()
	if until == nil || until.IsZero() {
		n, err := s.Stream.Write(b)
		return n, deadline(err)
	}
	type result struct {
		n   int
		err error
	}
	written := make(chan result, 1)
	b = slices.Clone(b) // which the caller may use again before it is written
	go func() {
		n, err := s.Stream.Write(b)
		written <- result{n, deadline(err)}
	}()
	late := time.NewTimer(time.Until(*until))
	defer late.Stop()
	select {
	case r := <-written:
		return r.n, r.err
	case <-late.C:
		return 0, os.ErrDeadlineExceeded
	}
}

func (s *stream) SetDeadline(t time.Time) error {
	s.until.Store(&t)
	return s.Stream.SetDeadline(t)
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.until.Store(&t)
	return s.Stream.SetWriteDeadline(t)
}

func deadline(err error) error {
	if errors.Is(err, yamux.ErrTimeout) {
		return os.ErrDeadlineExceeded
	}
	return err
}

func (s *stream) Close() error {
	// A deadline that is refused leaves the read to the session's end, as an error of Close does
	// the stream.
	_ = s.SetReadDeadline(time.Unix(1, 0))
	go func() { _ = s.Stream.Close() }()
	return nil
}
