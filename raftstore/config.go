package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Protocols that a [Transport] carries.
const (
	// ProtocolRaft is what Raft's peers say to each other.
	ProtocolRaft = "rookery-raft"
	// ProtocolStore is transactions and read-indexes forwarded to the leader.
	ProtocolStore = "rookery-store"
)

// Transport connects peers by name. It must authenticate both ends: whoever
// gets a connection may write. All methods may be called concurrently.
type Transport interface {
	// Dial connects to a peer. It returns within the deadline of ctx.
	Dial(ctx context.Context, peer, protocol string) (net.Conn, error)
	// Listener yields the connections of other peers for a protocol. It is
	// called once for each protocol in a run; the store closes it.
	Listener(protocol string) net.Listener
}

// Config is what a [Replicated] store needs to know. Name, Dir and Transport
// are required; for everything else zero means the default.
type Config struct {
	// Name is this peer's name, unique in the cluster and for ever. Raft knows
	// peers by it alone; addresses are the Transport's business.
	Name string

	// Dir is where the log (raft.db) and the snapshots are. It is made if
	// absent. It belongs to this peer and to one process at a time.
	Dir string

	// Transport reaches the other peers.
	Transport Transport

	// Logger gets what happens. Default: nothing is logged.
	Logger *slog.Logger

	// Alive tells whether a peer is thought to be reachable, to name the
	// missing ones when there is no quorum. It must not block. nil: unknown.
	Alive func(peer string) bool

	// Subscribe returns a channel that gets a value when answers of Alive change; Run
	// calls it once. With it, Raft's timeouts are 2 s while Alive says that the leader
	// is, and those below as soon as it says no: an idle cluster sends fewer
	// heartbeats, and a dead leader is replaced sooner. nil: they are always those below.
	Subscribe func() <-chan struct{}

	// HeartbeatTimeout is how long a follower does without the leader until it
	// wants an election; Raft takes a random time from one to two of it. Default
	// 800 ms: the others see the leader dead after 1.6 s at the latest, which
	// leaves over a second of the 3 s to vote, and a pause of the machine of half
	// a second (an SD card, a garbage collection) is no death.
	HeartbeatTimeout time.Duration

	// ElectionTimeout is how long a candidate waits for votes, again one to two
	// times. At least HeartbeatTimeout. Default: 800 ms.
	ElectionTimeout time.Duration

	// LeaderLease is how long a leader stays one without hearing from a
	// majority. At most HeartbeatTimeout, which is the default: a leader that is cut
	// off steps down at about the time when another is elected. What it acknowledges
	// and what a Sync says does not depend on it.
	LeaderLease time.Duration

	// LeaderlessGrace is how long a write waits for a leader to appear. When
	// there was none for longer, writes fail at once. Default 1.5 s: an
	// election that works takes less.
	LeaderlessGrace time.Duration

	// RequestTimeout bounds Txn and Sync. Default and maximum: 5 s, as [Store] promises.
	RequestTimeout time.Duration

	// SnapshotThreshold is how many log entries make a snapshot worth writing.
	// Default 4096: some megabytes to read again at a start.
	SnapshotThreshold uint64

	// SnapshotInterval is how often that is looked at. Default: 2 min.
	SnapshotInterval time.Duration

	// TrailingLogs is how many entries stay in the log after a snapshot, for
	// followers that are a little behind. Default 2048. Further behind, they get the snapshot.
	TrailingLogs uint64

	// HistoryEvents is how many events can be watched back. Default: 10,000.
	HistoryEvents int

	// HistoryBytes bounds the old values kept in memory for that. Default: 16 MiB.
	HistoryBytes int
}

// requestTimeout is the most that [Store] lets Txn and Sync take.
const requestTimeout = 5 * time.Second

// withDefaults returns a copy of c in which zeros are replaced, or says what is wrong.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Name == "":
		return c, errors.New("raftstore config: Name is empty")
	case c.Dir == "":
		return c, errors.New("raftstore config: Dir is empty")
	case c.Transport == nil:
		return c, errors.New("raftstore config: Transport is nil")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	def(&c.HeartbeatTimeout, 800*time.Millisecond)
	def(&c.ElectionTimeout, max(c.HeartbeatTimeout, 800*time.Millisecond))
	def(&c.LeaderLease, c.HeartbeatTimeout)
	def(&c.LeaderlessGrace, 1500*time.Millisecond)
	def(&c.RequestTimeout, requestTimeout)
	def(&c.SnapshotThreshold, 4096)
	def(&c.SnapshotInterval, 2*time.Minute)
	def(&c.TrailingLogs, 2048)
	def(&c.HistoryEvents, historyEvents)
	def(&c.HistoryBytes, historyBytes)
	switch {
	case c.ElectionTimeout < c.HeartbeatTimeout:
		return c, fmt.Errorf("raftstore config: ElectionTimeout %s is less than HeartbeatTimeout %s", c.ElectionTimeout, c.HeartbeatTimeout)
	case c.Subscribe != nil && c.Alive == nil:
		return c, errors.New("raftstore config: Subscribe without Alive")
	case c.HeartbeatTimeout > restTimeout && c.Subscribe != nil:
		return c, fmt.Errorf("raftstore config: HeartbeatTimeout %s is more than the %s at rest", c.HeartbeatTimeout, restTimeout)
	case c.LeaderLease < restTimeout/4 && c.Subscribe != nil: // heartbeats come every tenth to fifth of it
		return c, fmt.Errorf("raftstore config: LeaderLease %s is too short for the heartbeats at rest; give it at least %s", c.LeaderLease, restTimeout/4)
	case c.LeaderLease > c.HeartbeatTimeout:
		return c, fmt.Errorf("raftstore config: LeaderLease %s is more than HeartbeatTimeout %s", c.LeaderLease, c.HeartbeatTimeout)
	case c.RequestTimeout > requestTimeout:
		return c, fmt.Errorf("raftstore config: RequestTimeout %s is more than %s", c.RequestTimeout, requestTimeout)
	}
	return c, nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
