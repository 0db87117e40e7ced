package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// dialTimeout: two lost packets on a local network; a leader that is further
// away than that is not reachable.
const dialTimeout = time.Second

// client forwards to the leader over one connection that all requests share.
type client struct {
	transport Transport
	ctx       context.Context // of the run; its end ends all connections
	wg        sync.WaitGroup

	mu   sync.Mutex
	link *link
}

// link is a connection to one peer, or the attempt to make one.
type link struct {
	peer  string
	out   chan []byte
	ready chan struct{} // closed when connected or failed
	done  chan struct{} // closed when failed
	end   context.CancelFunc

	mu      sync.Mutex
	err     error
	number  uint64
	waiting map[uint64]func(reply)
}

// reply is the answer of the leader, or err: the connection broke before it came.
type reply struct {
	code  byte
	index uint64
	text  string
	err   error
}

// to returns the link to peer, making one if there is none. The link to another
// peer, the leader before, is closed.
func (c *client) to(peer string) *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil && c.link.peer == peer && !c.link.failed() {
		return c.link
	}
	if c.link != nil {
		c.link.end()
	}
	ctx, cancel := context.WithCancel(c.ctx)
	l := &link{
		peer: peer, end: cancel, waiting: map[uint64]func(reply){},
		out: make(chan []byte, framesInFlight), ready: make(chan struct{}), done: make(chan struct{}),
	}
	c.link = l
	c.wg.Go(func() {
		defer cancel()
		l.fail(l.run(ctx, c.transport))
	})
	return l
}

func (l *link) failed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// run connects, then reads replies until the connection or ctx ends.
func (l *link) run(ctx context.Context, t Transport) error {
	dialling, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := t.Dial(dialling, l.peer, ProtocolStore)
	cancel()
	if err != nil {
		return fmt.Errorf("connect to %s: %w", l.peer, err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, storeGreeting); err != nil {
		return fmt.Errorf("greet %s: %w", l.peer, err)
	}
	close(l.ready)

	ctx, cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		if err := writeFrames(conn, l.out, ctx.Done(), func() {}); err != nil {
			conn.Close() // the reader reports the end
		}
	})
	defer wg.Wait()
	defer stop()
	defer cancel()
	return fmt.Errorf("connection to %s: %w", l.peer, l.read(conn))
}

func (l *link) read(conn net.Conn) error {
	r := bufio.NewReader(conn)
	for {
		kind, number, d, err := readFrame(conn, r)
		if err != nil {
			return err
		}
		code, index := d.uint8(), d.uint64()
		if kind != frameReply || d.err != nil {
			return errMalformed
		}
		l.mu.Lock()
		answer := l.waiting[number]
		delete(l.waiting, number)
		l.mu.Unlock()
		if answer != nil {
			answer(reply{code: code, index: index, text: string(d.b)})
		}
	}
}

// fail answers everything that waits.
func (l *link) fail(err error) {
	l.mu.Lock()
	waiting := l.waiting
	l.waiting, l.err = nil, err
	l.mu.Unlock()
	close(l.done)
	for _, answer := range waiting {
		answer(reply{err: err})
	}
}

// errNotSent says that a request did not leave this peer.
var errNotSent = errors.New("not sent")

// send sends the frame that build makes of a number; answer is called once with
// the reply and must not block. On error, which is errNotSent, it is not called.
func (l *link) send(ctx context.Context, build func(number uint64) []byte, answer func(reply)) error {
	select {
	case <-l.ready:
	case <-l.done:
		return fmt.Errorf("%w: %w", errNotSent, l.err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	l.mu.Lock()
	if l.waiting == nil {
		defer l.mu.Unlock()
		return fmt.Errorf("%w: %w", errNotSent, l.err)
	}
	l.number++
	number := l.number
	l.waiting[number] = answer
	l.mu.Unlock()
	select {
	case l.out <- build(number):
		return nil
	case <-l.done:
		return nil // fail has answered
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, mine := l.waiting[number]; !mine {
			return nil // fail has answered
		}
		delete(l.waiting, number)
		return fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
}

// readIndex asks the leader for an index, see reads.get.
func (l *link) readIndex(ctx context.Context) (uint64, error) {
	answers := make(chan reply, 1)
	err := l.send(ctx, func(number uint64) []byte { return sealFrame(newFrame(frameReadIndex, number, 0)) },
		func(r reply) { answers <- r })
	if err != nil {
		return 0, err
	}
	select {
	case r := <-answers:
		if r.err != nil {
			return 0, r.err
		}
		if r.code != replyOK {
			return 0, errNotProposed
		}
		return r.index, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
