package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leadership is a term in which this peer leads and has committed an entry, so
// that its state holds all that was acknowledged before.
type leadership struct {
	term uint64
	ctx  context.Context // ends with the leadership
}

// broadcast wakes all who wait for something to change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that is closed at the next change. Take it before
// looking at what may change.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// runLeadership follows Raft's word on whether this peer leads, until ctx ends.
func (r *Replicated) runLeadership(ctx context.Context, rf *raft.Raft, notify <-chan bool) {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case leads := <-notify:
			stop() // leader work of one term does not overlap with the next
			stop = func() {}
			if leads {
				stop = r.beginTerm(ctx, rf)
			}
		case <-ctx.Done():
			return
		}
	}
}

// beginTerm starts runTerm and returns what ends it and waits for that.
func (r *Replicated) beginTerm(ctx context.Context, rf *raft.Raft) (end func()) {
	term, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		r.runTerm(term, rf)
	}()
	return func() {
		cancel()
		<-done
		r.lead.Store(nil)
		r.changed.wake()
	}
}

// runTerm makes the leadership effective and does what only the leader does,
// until ctx ends.
func (r *Replicated) runTerm(ctx context.Context, rf *raft.Raft) {
	f := rf.Apply((&entry{kind: entryTerm}).encode(), 0)
	if err := r.await(f); err != nil {
		r.cfg.Logger.Warn("won an election, but could not begin the term", "err", err)
		return
	}
	term, ok := f.Response().(uint64)
	if !ok || ctx.Err() != nil {
		return
	}
	r.lead.Store(&leadership{term: term, ctx: ctx})
	r.changed.wake()
	r.cfg.Logger.Info("this peer leads", "term", term)
	r.nudge() // the others wait for that entry as well
	r.st.runExpiry(ctx, func(ctx context.Context, kvs []*KV) error { return r.expireKeys(ctx, term, kvs) })
}

// expireKeys proposes the deletion of kvs, each on its own.
func (r *Replicated) expireKeys(ctx context.Context, term uint64, kvs []*KV) error {
	answers := make(chan error, len(kvs))
	sent := 0
	var failure error
	for _, kv := range kvs {
		err := r.batcher.submit(ctx, job{term: term, proposal: proposal{ops: expireTxn(kv)}, done: func(err error) { answers <- err }})
		if err != nil {
			failure = err
			break
		}
		sent++
	}
	for range sent {
		select {
		case err := <-answers:
			if err != nil {
				failure = err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if failure != nil && ctx.Err() == nil {
		r.cfg.Logger.Warn("could not delete expired keys, trying again", "err", failure)
	}
	return failure
}

// RunWhileLeader calls f whenever this peer has become the leader, with a
// context that ends when it is not any more. f begins only when this peer's state
// holds all that earlier leaders acknowledged. Each term is a new call; the one
// before has returned. f that returns nil early has nothing more to do in this
// term. RunWhileLeader returns nil when ctx ends, [ErrClosed] when the store
// does, and the error of f if f fails while its context has not ended.
func (r *Replicated) RunWhileLeader(ctx context.Context, f func(context.Context) error) error {
	for {
		changed := r.changed.wait()
		if lead := r.lead.Load(); lead != nil && lead.ctx.Err() == nil {
			if err := runTermOf(ctx, lead, f); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.closing:
			return ErrClosed
		case <-changed:
		}
	}
}

func runTermOf(ctx context.Context, lead *leadership, f func(context.Context) error) error {
	term, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(lead.ctx, cancel)()
	if err := f(term); err != nil && term.Err() == nil {
		return err
	}
	<-term.Done()
	return nil
}

// runObserver notes since when no leader is known, until ctx ends.
func (r *Replicated) runObserver(ctx context.Context, rf *raft.Raft) {
	// A few: events that do not fit are dropped, but then one is read later.
	events := make(chan raft.Observation, 8)
	o := raft.NewObserver(events, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	rf.RegisterObserver(o)
	defer rf.DeregisterObserver(o)
	for {
		r.noteLeader(rf)
		select {
		case <-events:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Replicated) noteLeader(rf *raft.Raft) {
	leader, _ := rf.LeaderWithID()
	r.leaderMu.Lock()
	switch {
	case leader != "":
		r.leaderless = time.Time{}
	case r.leaderless.IsZero():
		r.leaderless = time.Now()
	}
	r.leaderMu.Unlock()
	r.changed.wake()
}

// leaderlessFor is for how long no leader has been known; false while one is.
func (r *Replicated) leaderlessFor() (time.Duration, bool) {
	if r.Leader() != "" {
		return 0, false // the observer may not have noted it yet
	}
	r.leaderMu.Lock()
	defer r.leaderMu.Unlock()
	if r.leaderless.IsZero() {
		return 0, true
	}
	return time.Since(r.leaderless), true
}

// expectElection makes the patience with there being no leader begin anew: a
// peer that has just started waits up to two heartbeat timeouts before it even
// asks for votes.
func (r *Replicated) expectElection() {
	r.leaderMu.Lock()
	defer r.leaderMu.Unlock()
	r.leaderless = time.Now().Add(2 * r.cfg.HeartbeatTimeout)
}
