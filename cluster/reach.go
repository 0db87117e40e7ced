package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
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
	stop := context.AfterFunc(ctx, conn.drop)
	defer stop()
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
	from := netip.Addr{}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		from = tcp.AddrPort().Addr()
	}
	a := reachAnswer{Reached: true}
	if err := p.reach(ctx, conn.name, from.Unmap(), q); err != nil {
		p.cfg.Log.Debug("a peer cannot be dialled from here", "peer", conn.name, "error", err)
		a = reachAnswer{Why: reason(err)}
	}
	p.reached(conn.name, a.Reached)
	if err := json.NewEncoder(conn).Encode(a); err != nil {
		p.cfg.Log.Debug("the answer whether a peer can be dialled was not delivered", "peer", conn.name, "error", err)
	}
}

// errNotAsked says that the question was about an address that no peer has.
var errNotAsked = errors.New("not an address of a peer")

// reason is what the other side is told: enough to mend it, but no report of what else there is
// at an address that it chose.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errNotAsked):
		return errNotAsked.Error()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH):
		return "no route"
	default:
		return "somebody else answers there"
	}
}

// dialable tells whether a may be the address of the peer that asks from there: loopback and
// link-local ones are if it asks from such a one.
func (p *Port) dialable(a, from netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() && !from.IsLinkLocalUnicast() || a.IsLoopback() && !from.IsLoopback() {
		return false
	}
	return !slices.ContainsFunc(p.cfg.Identity.Settings().Ranges(), func(r identity.Ranges) bool {
		return r.PodCIDR.Contains(a) || r.ServiceCIDR.Contains(a)
	})
}

func (p *Port) reach(ctx context.Context, name string, from netip.Addr, q reachQuestion) error {
	if !p.dialable(q.Address.Unmap(), from) {
		return errNotAsked
	}
	port, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	plain, err := dialTCP(port, netip.AddrPortFrom(q.Address, q.Port).String())
	if err != nil {
		return err
	}
	conn, err := p.secure(port, plain, name, protocolReach)
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

// Hidden tells whether the peer asked and was found not to be dialled from here, several times in a
// row; known is false before that, and before it was dialled once. It outlives a loss of the
// connection that the peer keeps.
func (p *Port) Hidden(name string) (hidden, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sights[name]
	return s.hidden, s.known
}

// sight is what peers that asked were answered.
type sight struct {
	hidden, known bool
	noes          int // in a row
}

func (p *Port) reached(name string, yes bool) {
	p.mu.Lock()
	before := p.sights[name]
	now := before
	if yes {
		now = sight{known: true}
	} else if now.noes++; now.noes >= answersInARow {
		now.hidden, now.known = true, true
	}
	p.sights[name] = now
	p.mu.Unlock()
	if before.hidden != now.hidden {
		p.cfg.Log.Info("whether a peer can be dialled from here has changed", "peer", name, "can", yes)
	}
	if before.hidden != now.hidden || before.known != now.known {
		p.linksChanged()
	}
}
