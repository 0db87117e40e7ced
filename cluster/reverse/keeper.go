package reverse

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// silence is after how long without a byte the keeper asks whether the other end is
	// still there. Gossip's packets are more frequent, so nothing is sent as a rule; what has lost
	// the connection (NAT that was restarted, a mobile network with another address) is found within 20 s.
	silence = 10 * time.Second
	// kindTimeout is for a stream's first byte, which is sent with its opening.
	kindTimeout = 10 * time.Second
	// maxStreams at a time over one connection.
	maxStreams = 256
	// retireTimeout bounds how long streams outlive the need for the connection.
	retireTimeout = 5 * time.Minute
	// retireTick is how often a retired connection is looked at for streams.
	retireTick = time.Second
)

// Handler takes what comes over a kept connection.
type Handler interface {
	// Stream takes over a connection, [Port] or [Gossip]. It must not block for long.
	Stream(kind Kind, conn net.Conn)
	// Packet takes over a datagram. It holds up those that follow.
	Packet(b []byte, from net.Addr)
}

// Keeper is the end of a kept connection at the peer that cannot be dialled.
type Keeper struct {
	session *yamux.Session
	conn    *heardConn
	handler Handler
	retired chan struct{}
	retire  sync.Once
	packets atomic.Int32 // streams of datagrams, which end with the connection only
	wg      sync.WaitGroup
}

// NewKeeper takes over a connection that this peer has dialled. [Keeper.Run] closes it.
func NewKeeper(conn net.Conn, h Handler, log *slog.Logger) (*Keeper, error) {
	heard := &heardConn{Conn: conn, start: time.Now()}
	session, err := yamux.Client(heard, config(log))
	if err != nil {
		return nil, fmt.Errorf("keep a connection: %w", err)
	}
	return &Keeper{session: session, conn: heard, handler: h, retired: make(chan struct{})}, nil
}

// Run hands on what the other end sends. It blocks until the connection is lost, which is the
// error; or nil when ctx ends, or the connection is retired and its last stream has ended.
// All that it started is gone then, but streams that the handler has taken.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.wg.Wait()
	defer k.session.Close()
	stop := context.AfterFunc(ctx, func() { k.session.Close() })
	defer stop()
	lost := make(chan error, 1)
	k.wg.Go(func() { lost <- k.accept() })
	tick := time.NewTicker(silence)
	defer tick.Stop()
	retired := k.retired
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retired:
			retired = nil
			k.wg.Go(k.windDown)
		case <-tick.C:
			if k.conn.silent() < silence {
				continue
			}
			if _, err := k.session.Ping(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("a kept connection is silent: %w", err)
			}
		case err := <-lost:
			if ctx.Err() != nil || retired == nil {
				return nil
			}
			return err
		}
	}
}

// Retire says that the other end can dial this peer: it opens no more streams, and the
// connection ends with the last one, after five minutes at most. It does not block. Idempotent.
func (k *Keeper) Retire() { k.retire.Do(func() { close(k.retired) }) }

func (k *Keeper) windDown() {
	defer k.session.Close()
	if err := k.session.GoAway(); err != nil {
		return
	}
	tick := time.NewTicker(retireTick)
	defer tick.Stop()
	end := time.NewTimer(retireTimeout)
	defer end.Stop()
	for k.session.NumStreams() > int(k.packets.Load()) {
		select {
		case <-k.session.CloseChan():
			return
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}

func (k *Keeper) accept() error {
	for {
		s, err := k.session.AcceptStream()
		if err != nil {
			return fmt.Errorf("a kept connection is lost: %w", err)
		}
		if k.session.NumStreams() > maxStreams {
			s.Close()
			continue
		}
		k.wg.Go(func() { k.take(newStream(s)) })
	}
}

// take reads what a stream is for. One of a kind that a later version may have is refused.
func (k *Keeper) take(s *stream) {
	var kind [1]byte
	err := s.SetReadDeadline(time.Now().Add(kindTimeout))
	if err == nil {
		_, err = io.ReadFull(s, kind[:])
	}
	if err == nil {
		err = s.SetReadDeadline(time.Time{})
	}
	if err != nil {
		s.Close()
		return
	}
	switch Kind(kind[0]) {
	case Port, Gossip:
		k.handler.Stream(Kind(kind[0]), s)
	case packets:
		k.packets.Add(1)
		defer k.packets.Add(-1)
		k.receive(s)
	default:
		s.Close()
	}
}

func (k *Keeper) receive(s *stream) {
	defer s.Close()
	in := bufio.NewReader(s)
	for {
		var length uint16
		if err := binary.Read(in, binary.BigEndian, &length); err != nil {
			return // with the connection, whose error is told
		}
		packet := make([]byte, length)
		if _, err := io.ReadFull(in, packet); err != nil {
			return
		}
		k.handler.Packet(packet, s.RemoteAddr())
	}
}

// heardConn knows when its last byte came.
type heardConn struct {
	net.Conn
	start time.Time    // whose monotonic clock counts: that of a board may jump
	last  atomic.Int64 // nanoseconds since start
}

func (c *heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.last.Store(int64(time.Since(c.start)))
	return n, err
}

func (c *heardConn) silent() time.Duration { return time.Since(c.start) - time.Duration(c.last.Load()) }
