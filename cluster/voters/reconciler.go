package voters

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Raft is what is needed of *raft.Raft. Servers are named by the peer's name,
// which is their address too.
type Raft interface {
	GetConfiguration() raft.ConfigurationFuture
	AddNonvoter(id raft.ServerID, address raft.ServerAddress, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	AddVoter(id raft.ServerID, address raft.ServerAddress, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	DemoteVoter(id raft.ServerID, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	RemoveServer(id raft.ServerID, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	LeadershipTransferToServer(id raft.ServerID, address raft.ServerAddress) raft.Future
	LastIndex() uint64
}

// Member is what gossip knows of a peer.
type Member struct {
	Alive bool
	Since time.Time // when Alive last changed
	Index uint64    // Raft index that it had applied when last asked; 0: unknown
	// Hidden and Unmet as in [Peer].
	Hidden, Unmet bool
}

// Record is a recorded peer.
type Record struct {
	Name    string
	Leaving bool // it is to be removed
}

// Config is what a [Reconciler] needs.
type Config struct {
	Self string
	Raft Raft
	// Records returns the recorded peers, as this peer has applied them.
	Records func() ([]Record, error)
	// Forget deletes the record of a peer that was leaving and is no server any more.
	Forget func(ctx context.Context, name string) error
	// Members returns what gossip knows, by name.
	Members func() map[string]Member
	Timing  Timing
	Log     *slog.Logger
}

const (
	// lookInterval is how often the configuration is compared, beside the wake-ups: the
	// times of [Timing] pass without an event.
	lookInterval = time.Second
	// changeTimeout bounds how long a change may wait to be proposed, not to be committed.
	changeTimeout = 5 * time.Second
	// caughtUp is how many entries a replica may lack and still be promoted: it has
	// them within a fraction of a second, and gossip's view of it is as old.
	caughtUp = 512
)

// Reconciler carries out plans on the leader.
type Reconciler struct {
	cfg   Config
	begun time.Time
}

// New returns a reconciler for one term; a new term needs a new one.
func New(cfg Config) *Reconciler { return &Reconciler{cfg: cfg} }

// Run reconciles until ctx, which ends with the term, is done. wake says that
// records or members changed; it may be nil. Failures are logged and tried again.
func (r *Reconciler) Run(ctx context.Context, wake <-chan struct{}) error {
	r.begun = time.Now()
	t := time.NewTicker(lookInterval)
	defer t.Stop()
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("raft configuration is not as wanted", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-t.C:
		}
	}
}

// step plans and carries out until nothing is left to do. The plan is made
// anew after every change.
func (r *Reconciler) step(ctx context.Context) error {
	for ctx.Err() == nil {
		s, index, err := r.snapshot(time.Now())
		if err != nil {
			return err
		}
		plan := Plan(s)
		if len(plan) == 0 {
			return r.forget(ctx, s)
		}
		c := plan[0]
		if err := r.apply(ctx, c, index); err != nil {
			return fmt.Errorf("%s %s: %w", c.Kind, c.Name, err)
		}
		r.cfg.Log.Info("raft configuration changed", "change", c.Kind.String(), "peer", c.Name, "why", c.Why)
		if c.Kind == Transfer {
			return nil // the term ends
		}
	}
	return nil
}

// forget ends removals: the peers that were leaving and are no servers any more.
func (r *Reconciler) forget(ctx context.Context, s Snapshot) error {
	for _, p := range s.Peers {
		if !p.Leaving || slices.ContainsFunc(s.Servers, func(x Server) bool { return x.Name == p.Name }) {
			continue
		}
		if err := r.cfg.Forget(ctx, p.Name); err != nil {
			return fmt.Errorf("forget %s: %w", p.Name, err)
		}
		r.cfg.Log.Info("peer removed", "peer", p.Name)
	}
	return nil
}

// snapshot also returns the index of the configuration, so that a change is
// refused if somebody else changed it meanwhile.
func (r *Reconciler) snapshot(now time.Time) (Snapshot, uint64, error) {
	s := Snapshot{Now: now, Self: r.cfg.Self, Timing: r.cfg.Timing}
	f := r.cfg.Raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return s, 0, fmt.Errorf("read raft configuration: %w", err)
	}
	for _, srv := range f.Configuration().Servers {
		s.Servers = append(s.Servers, Server{Name: string(srv.ID), Voter: srv.Suffrage == raft.Voter})
	}
	records, err := r.cfg.Records()
	if err != nil {
		return s, 0, fmt.Errorf("read peer records: %w", err)
	}
	members, last := r.cfg.Members(), r.cfg.Raft.LastIndex()
	for _, rec := range records {
		name, m := rec.Name, members[rec.Name]
		p := Peer{Name: name, Leaving: rec.Leaving, Alive: m.Alive || name == r.cfg.Self, Since: m.Since, Hidden: m.Hidden, Unmet: m.Unmet,
			CaughtUp: name == r.cfg.Self || (m.Index > 0 && m.Index+caughtUp >= last)}
		// What was before this term was perhaps not seen from here: a leader that
		// has just come back must not take the others for long dead.
		if !p.Alive && p.Since.Before(r.begun) {
			p.Since = r.begun
		}
		s.Peers = append(s.Peers, p)
	}
	return s, f.Index(), nil
}

// apply blocks until the change is committed or ctx ends. It cannot be called off: what was
// proposed may happen then. hashicorp/raft answers when leadership is lost, but not always when
// it is shut down.
func (r *Reconciler) apply(ctx context.Context, c Change, prev uint64) error {
	answer := make(chan error, 1)
	go func() { answer <- r.change(c, prev) }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Reconciler) change(c Change, prev uint64) error {
	id, addr := raft.ServerID(c.Name), raft.ServerAddress(c.Name)
	switch c.Kind {
	case AddReplica:
		return r.cfg.Raft.AddNonvoter(id, addr, prev, changeTimeout).Error()
	case Promote:
		return r.cfg.Raft.AddVoter(id, addr, prev, changeTimeout).Error()
	case Demote:
		return r.cfg.Raft.DemoteVoter(id, prev, changeTimeout).Error()
	case Remove:
		return r.cfg.Raft.RemoveServer(id, prev, changeTimeout).Error()
	case Transfer:
		return r.cfg.Raft.LeadershipTransferToServer(id, addr).Error()
	}
	return fmt.Errorf("change %d is not known", c.Kind)
}
