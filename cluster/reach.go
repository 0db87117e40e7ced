package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

const (
	// reachTimeout bounds one try of a peer to dial the one that asks: a firewall that drops
	// packets answers nothing, and a mobile network takes up to a second.
	reachTimeout = 2 * time.Second
	// maxReaches are tried at a time; the others wait.
	maxReaches = 16
	// maxReachBytes bounds a question or an answer.
	maxReachBytes = 4 << 10
)

// reachQuestion is what a peer asks another one: can you dial me there? It is one JSON value, and
// so is the answer. Later versions may add fields.
type reachQuestion struct {
	Address    netip.Addr `json:"address"`
	Port       uint16     `json:"port"`
	GossipPort uint16     `json:"gossipPort"`
}

type reachAnswer struct {
	Reached bool   `json:"reached"`
	Why     string `json:"why,omitempty"` // it was not
}

// askReach asks the peer called name whether it can dial this one. An error says that the
// peer itself cannot be dialled.
func (p *Port) askReach(ctx context.Context, name string, q reachQuestion) (a reachAnswer, err error) {
	conn, err := p.dialDirect(ctx, name, protocolReach)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(2*handshakeTimeout + 2*reachTimeout)); err == nil {
		err = json.NewEncoder(conn).Encode(q)
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxReachBytes)).Decode(&a)
	}
	if err != nil {
		return a, fmt.Errorf("ask %s whether it can dial us: %w", name, err)
	}
	return a, nil
}

// alerted tells whether the other side was reached and refused to speak the protocol: an older
// Rookery does not know it.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // crypto/tls on an alert
}

// dialDirect is Dial without the connection that the peer keeps.
func (p *Port) dialDirect(ctx context.Context, name, protocol string) (*peerConn, error) {
	err := ErrUnresolved
	for _, addr := range p.cfg.Resolve(name) {
		var conn *peerConn
		if conn, err = p.dialAddr(ctx, name, addr, protocol, dialTimeout); err == nil {
			return conn, nil
		}
	}
	return nil, fmt.Errorf("dial %s: %w", name, err)
}

func (p *Port) dialAddr(ctx context.Context, name, addr, protocol string, timeout time.Duration) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dialTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	return p.secure(ctx, conn, name, protocol)
}

// serveReach answers the question of a peer. That what answers is this very peer shows in its
// certificate: behind NAT many have the same address.
func (p *Port) serveReach(ctx context.Context, conn *peerConn) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2*handshakeTimeout + 2*reachTimeout)); err != nil {
		return
	}
	var q reachQuestion
	if err := json.NewDecoder(io.LimitReader(conn, maxReachBytes)).Decode(&q); err != nil {
		return // a peer that only wanted to see that it can dial
	}
	select {
	case p.reaches <- struct{}{}:
		defer func() { <-p.reaches }()
	case <-time.After(handshakeTimeout):
		return // it asks again
	case <-ctx.Done():
		return
	}
	a := reachAnswer{Reached: true}
	if err := p.reach(ctx, conn.name, q); err != nil {
		a = reachAnswer{Why: err.Error()}
	}
	p.setHidden(conn.name, !a.Reached)
	if err := json.NewEncoder(conn).Encode(a); err != nil {
		p.cfg.Log.Debug("the answer whether a peer can be dialled was not delivered", "peer", conn.name, "error", err)
	}
}

func (p *Port) reach(ctx context.Context, name string, q reachQuestion) error {
	conn, err := p.dialAddr(ctx, name, netip.AddrPortFrom(q.Address, q.Port).String(), protocolReach, reachTimeout)
	if err != nil {
		return err
	}
	conn.Close()
	d := net.Dialer{Timeout: reachTimeout}
	gossip, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(q.Address, q.GossipPort).String())
	if err != nil {
		return err
	}
	return gossip.Close()
}

// Hidden tells whether the peer asked and was found not to be dialled from here. That outlives a
// loss of the connection that it keeps.
func (p *Port) Hidden(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hidden[name]
}

func (p *Port) setHidden(name string, hidden bool) {
	p.mu.Lock()
	changed := p.hidden[name] != hidden
	if hidden {
		p.hidden[name] = true
	} else {
		delete(p.hidden, name)
	}
	p.mu.Unlock()
	if changed {
		p.cfg.Log.Info("whether a peer can be dialled from here has changed", "peer", name, "can", !hidden)
		p.linksChanged()
	}
}
