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

// server answers the store protocol: other peers forward to this one what the
// leader must do.
type server struct {
	r     *Replicated
	conns connSet
	wg    sync.WaitGroup
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.conns.closeAll()
	})
	defer stop()
	defer s.wg.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", ProtocolStore, err)
		}
		conn = s.conns.track(conn)
		s.wg.Go(func() {
			if err := s.serve(ctx, conn); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				s.r.cfg.Logger.Debug("store connection ended", "peer", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

// serve reads requests until the connection ends.
func (s *server) serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan []byte, framesInFlight)
	slots := make(chan struct{}, framesInFlight)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		if err := writeFrames(conn, out, ctx.Done(), func() { <-slots }); err != nil {
			conn.Close() // the reader below reports the end
		}
	})
	defer wg.Wait()
	defer conn.Close()
	defer cancel()

	if err := readGreeting(conn); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, 32<<10)
	for {
		kind, number, d, err := readFrame(conn, r)
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		reply := func(code byte, index uint64, text string) {
			select { // a request holds its slot until here, so there is room
			case out <- replyFrame(number, code, index, text):
			case <-ctx.Done(): // nobody is there to read it
			}
		}
		switch kind {
		case frameTxn:
			s.txn(ctx, d, reply)
		case frameReadIndex:
			wg.Go(func() { s.readIndex(ctx, reply) })
		default:
			return fmt.Errorf("frame of type %d: %w", kind, errMalformed)
		}
	}
}

func readGreeting(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return err
	}
	greeting := make([]byte, len(storeGreeting))
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return err
	}
	if string(greeting) != storeGreeting {
		return fmt.Errorf("the other end speaks %q, this one %q", greeting, storeGreeting)
	}
	return nil
}

type replyFunc func(code byte, index uint64, text string)

func (s *server) txn(ctx context.Context, d decoder, reply replyFunc) {
	term := d.uvarint()
	p := proposal{id: proposalID{session: d.uint64(), seq: d.uint64()}, ops: d.ops()}
	if err := d.end(); err != nil {
		reply(replyMalformed, 0, err.Error())
		return
	}
	lead := s.r.lead.Load()
	if lead == nil || lead.term != term {
		reply(replyNotProposed, 0, "")
		return
	}
	if err := s.r.room(); err != nil {
		reply(replyDiskFull, 0, err.Error())
		return
	}
	err := s.r.batcher.submit(ctx, job{term: term, proposal: p, done: func(err error) { replyError(reply, err) }})
	if err != nil {
		reply(replyNotProposed, 0, "")
	}
}

func (s *server) readIndex(ctx context.Context, reply replyFunc) {
	index, err := s.r.reads.get(ctx)
	if err != nil {
		reply(replyNotProposed, 0, err.Error())
		return
	}
	reply(replyOK, index, "")
}

func replyError(reply replyFunc, err error) {
	var uncertain *UncertainError
	switch {
	case err == nil:
		reply(replyOK, 0, "")
	case errors.As(err, &uncertain):
		reply(replyUncertain, 0, uncertain.Cause.Error())
	default:
		reply(replyNotProposed, 0, "")
	}
}
