package raftstore

import (
	"net"
	"sync"
)

// connSet closes the connections that are open when a store stops: those who
// read from them would wait for the other peer for ever.
type connSet struct {
	mu     sync.Mutex
	open   map[*trackedConn]struct{}
	closed bool
}

type trackedConn struct {
	net.Conn
	set *connSet
}

// track returns conn as a connection of the set; it is closed at once if the set is.
func (s *connSet) track(conn net.Conn) net.Conn {
	t := &trackedConn{Conn: conn, set: s}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		if s.open == nil {
			s.open = map[*trackedConn]struct{}{}
		}
		s.open[t] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		conn.Close()
	}
	return t
}

// Close implements [net.Conn].
func (t *trackedConn) Close() error {
	t.set.mu.Lock()
	delete(t.set.open, t)
	t.set.mu.Unlock()
	return t.Conn.Close()
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	open := s.open
	s.open, s.closed = nil, true
	s.mu.Unlock()
	for t := range open {
		t.Conn.Close()
	}
}
