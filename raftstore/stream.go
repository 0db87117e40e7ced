package raftstore

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// rpcTimeout bounds a Raft request, fsync at the other end included. A peer that
// is cut off without a word is asked again after it.
const rpcTimeout = 3 * time.Second

// streamLayer is our [Transport] as Raft's network transport wants it, where an
// address is a peer's name.
type streamLayer struct {
	net.Listener
	name      string
	transport Transport
	conns     connSet
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func newRaftTransport(cfg *Config) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &streamLayer{Listener: cfg.Transport.Listener(ProtocolRaft), name: cfg.Name, transport: cfg.Transport},
		MaxPool: 2, // one for heartbeats, one for what is not in the pipeline
		Timeout: rpcTimeout,
		Logger:  &raftLogger{log: cfg.Logger},
	})
}

// Dial implements [raft.StreamLayer].
func (s *streamLayer) Dial(peer raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := s.transport.Dial(ctx, string(peer), ProtocolRaft)
	if err != nil {
		return nil, err
	}
	return s.conns.track(conn), nil
}

// Accept implements [net.Listener].
func (s *streamLayer) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.conns.track(conn), nil
}

// Close implements [net.Listener]. It closes the connections as well.
func (s *streamLayer) Close() error {
	s.conns.closeAll()
	return s.Listener.Close()
}

// Addr implements [net.Listener]: Raft tells it to the others.
func (s *streamLayer) Addr() net.Addr { return peerAddr(s.name) }

type peerAddr string

func (a peerAddr) Network() string { return "rookery" }
func (a peerAddr) String() string  { return string(a) }
