package cluster

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// The adapters between memberlist and [Members]. Memberlist calls most of them
// with its own lock held, so they only touch the table and never block.

func addrPort(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// events feeds the table.
type events struct {
	table *memberTable
	log   *slog.Logger
}

func (e events) NotifyJoin(n *memberlist.Node)   { e.heard(n, "peer is alive") }
func (e events) NotifyUpdate(n *memberlist.Node) { e.heard(n, "peer says something new") }

func (e events) heard(n *memberlist.Node, what string) {
	m, err := decodeMeta(n.Meta)
	if err != nil { // refused by admission already
		e.log.Warn("gossip is not understood", "peer", n.Name, "error", err)
		return
	}
	e.log.Info(what, "peer", n.Name, "address", addrPort(n))
	e.table.heard(n.Name, addrPort(n), m, time.Now())
}

func (e events) NotifyLeave(n *memberlist.Node) {
	e.log.Info("peer is gone", "peer", n.Name, "address", addrPort(n))
	e.table.gone(n.Name, time.Now())
}

// admission refuses those that cannot be understood and those that have been removed.
type admission struct {
	self    string
	allowed func(name, fingerprint string) bool
}

func (a admission) NotifyAlive(n *memberlist.Node) error {
	m, err := decodeMeta(n.Meta)
	if err != nil {
		return err
	}
	if n.Name != a.self && a.allowed != nil && !a.allowed(n.Name, m.Key) {
		return fmt.Errorf("%s: %w", n.Name, ErrRemoved)
	}
	return nil
}

// conflicts logs two machines of one name. Memberlist keeps the one it knows.
type conflicts struct{ log *slog.Logger }

func (c conflicts) NotifyConflict(old, other *memberlist.Node) {
	c.log.Error("two machines use one peer name: was a data directory copied? The newcomer is refused until the other is gone",
		"peer", old.Name, "known", addrPort(old), "refused", addrPort(other))
}

// pings carries the applied Raft index on the answers to probes: the leader
// thus knows without further traffic who has caught up and may become a voter.
type pings struct {
	table   *memberTable
	applied func() uint64
}

func (p pings) AckPayload() []byte {
	if p.applied == nil {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, p.applied())
}

func (p pings) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	var index uint64
	if len(payload) == 8 {
		index = binary.BigEndian.Uint64(payload)
	}
	p.table.acked(n.Name, rtt, index, time.Now())
}

// metaDelegate gives our meta; user messages and extra state are not used.
type metaDelegate struct {
	current func() meta
	log     *slog.Logger
}

func (d metaDelegate) NodeMeta(limit int) []byte {
	b, err := d.current().encode(limit)
	if err != nil {
		d.log.Error("gossip meta is not sent", "error", err)
		return nil
	}
	return b
}
func (metaDelegate) NotifyMsg([]byte)                {}
func (metaDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (metaDelegate) LocalState(bool) []byte          { return nil }
func (metaDelegate) MergeRemoteState([]byte, bool)   {}

// logWriter takes memberlist's own log as debug lines: what matters in it
// arrives as events too.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("memberlist", "line", string(b))
	return len(b), nil
}
