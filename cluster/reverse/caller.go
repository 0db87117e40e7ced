package reverse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// callerKeepAlive finds a keeper that is gone without a word, for the sake of tidiness:
	// what lives and what does not is told by gossip, much sooner.
	callerKeepAlive = 30 * time.Second
	// maxQueued datagrams wait for a slow connection; more are dropped, as a network does.
	maxQueued = 256
)

// ErrRetired says that the keeper takes no more streams: it can be dialled now.
var ErrRetired = errors.New("the peer keeps this connection no more")

// Caller is the end of a kept connection at the peer that cannot dial the other one. Its
// methods may be called concurrently.
type Caller struct {
	session *yamux.Session
	queue   chan []byte
}

// NewCaller takes over a connection that a keeper has dialled; [Caller.Close] closes it.
func NewCaller(conn net.Conn, log *slog.Logger) (*Caller, error) {
	c := config(log)
	c.EnableKeepAlive, c.KeepAliveInterval = true, callerKeepAlive
	session, err := yamux.Server(conn, c)
	if err != nil {
		return nil, fmt.Errorf("take a kept connection: %w", err)
	}
	return &Caller{session: session, queue: make(chan []byte, maxQueued)}, nil
}

// Run sends datagrams and blocks until the connection ends, or ctx does; it is closed then. A keeper
// that opens a stream itself breaks the protocol, which ends the connection.
func (c *Caller) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.session.Close() })
	defer stop()
	defer c.session.Close()
	failed := make(chan error, 2)
	go func() { failed <- c.send() }()
	go func() {
		_, err := c.session.AcceptStream()
		if err == nil {
			err = errors.New("the keeper of a connection opened a stream")
		}
		failed <- err
	}()
	err := <-failed
	c.session.Close()
	<-failed
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Caller) send() error {
	s, err := c.open(packets)
	if err != nil {
		return err
	}
	defer s.Close()
	var buf []byte
	for {
		select {
		case packet := <-c.queue:
			buf = appendPacket(buf[:0], packet)
			for len(c.queue) > 0 && len(buf) < LargestPacket { // a write may wait for other streams
				buf = appendPacket(buf, <-c.queue)
			}
			if _, err := s.Write(buf); err != nil {
				return fmt.Errorf("send a datagram over a kept connection: %w", err)
			}
		case <-c.session.CloseChan():
			return net.ErrClosed
		}
	}
}

func appendPacket(b, packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(packet))), packet...)
}

// Send gives a datagram on its way without waiting. It may be lost, as any.
func (c *Caller) Send(packet []byte) {
	if len(packet) == 0 || len(packet) > LargestPacket {
		return
	}
	select {
	case c.queue <- append([]byte(nil), packet...):
	default:
	}
}

// Dial opens a stream. It does not wait for the keeper, only for room in what the connection sends,
// and not beyond ctx: that the keeper is gone shows when the stream is read. [ErrRetired].
func (c *Caller) Dial(ctx context.Context, kind Kind) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	opened := make(chan result)
	go func() {
		conn, err := c.open(kind)
		select {
		case opened <- result{conn, err}:
		case <-ctx.Done():
			if err == nil {
				conn.Close()
			}
		}
	}()
	select {
	case r := <-opened:
		if errors.Is(r.err, yamux.ErrRemoteGoAway) {
			return nil, ErrRetired
		}
		return r.conn, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("open a stream over a kept connection: %w", ctx.Err())
	}
}

func (c *Caller) open(kind Kind) (net.Conn, error) {
	s, err := c.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open a stream over a kept connection: %w", err)
	}
	if _, err := s.Write([]byte{byte(kind)}); err != nil {
		s.Close()
		return nil, fmt.Errorf("open a stream over a kept connection: %w", err)
	}
	return newStream(s), nil
}

// Close ends the connection and every stream over it. Idempotent.
func (c *Caller) Close() error { return c.session.Close() }
