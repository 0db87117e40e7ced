package rafttest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
)

// Network connects peers over loopback TCP by name, and cuts them off.
type Network struct {
	mu    sync.Mutex
	addrs map[string]string // peer/protocol: address
	cut   map[string]bool
	conns map[net.Conn][2]string
}

// NewNetwork returns a network without peers.
func NewNetwork() *Network {
	return &Network{addrs: map[string]string{}, cut: map[string]bool{}, conns: map[net.Conn][2]string{}}
}

// SetCut takes a peer off the network, or puts it back.
func (n *Network) SetCut(peer string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[peer] = cut
	for conn, ends := range n.conns {
		if cut && (ends[0] == peer || ends[1] == peer) {
			conn.Close()
			delete(n.conns, conn)
		}
	}
}

// Alive says whether a peer is on the network.
func (n *Network) Alive(peer string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[peer]
}

// port is the Transport of one peer.
type port struct {
	t    testing.TB
	net  *Network
	name string
}

func (p port) Dial(ctx context.Context, peer, protocol string) (net.Conn, error) {
	p.net.mu.Lock()
	addr, cut := p.net.addrs[peer+"/"+protocol], p.net.cut[peer] || p.net.cut[p.name]
	p.net.mu.Unlock()
	if cut || addr == "" {
		return nil, fmt.Errorf("%s does not reach %s", p.name, peer)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.net.cut[peer] || p.net.cut[p.name] {
		conn.Close()
		return nil, fmt.Errorf("%s does not reach %s", p.name, peer)
	}
	p.net.conns[conn] = [2]string{p.name, peer}
	return conn, nil
}

func (p port) Listener(protocol string) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Errorf("listen: %v", err)
		return nil
	}
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.net.addrs[p.name+"/"+protocol] = l.Addr().String()
	return l
}
