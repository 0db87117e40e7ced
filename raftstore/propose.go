package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// retryPause is between attempts when nothing else says that it is time.
	retryPause = 20 * time.Millisecond
	// answerTimeout is how long the leader may take for a read-index before it is
	// asked over another connection. It needs one round of heartbeats.
	answerTimeout = 2 * time.Second
	// doubtInterval is how often one who waits for an outcome looks whether
	// there is still a leader.
	doubtInterval = 200 * time.Millisecond
)

// Revision implements [Store].
func (r *Replicated) Revision() int64 { return r.st.Revision() }

// CompactRevision implements [Store].
func (r *Replicated) CompactRevision() int64 { return r.st.CompactRevision() }

// Get implements [Store].
func (r *Replicated) Get(key string) (*KV, int64) { return r.st.Get(key) }

// List implements [Store].
func (r *Replicated) List(prefix, start string, at int64, limit int) (ListResult, error) {
	return r.st.List(prefix, start, at, limit)
}

// Watch implements [Store].
func (r *Replicated) Watch(prefix string, from int64) (*Watcher, error) {
	return r.st.Watch(prefix, from)
}

// Digest is a hash of the whole state at a revision (0: the newest), and that
// revision. Peers whose revisions are equal must have equal digests. It reads
// every key. Errors are those of List.
func (r *Replicated) Digest(at int64) (string, int64, error) { return r.st.Digest(at) }

// Txn implements [Store]. It rides over a change of leader: what surely did not
// happen is proposed again, until the deadline. Errors: [NoQuorumError] (nothing
// happened), [ErrDiskFull] (nothing happened), [ErrTooLarge] and other refusals of txn itself, [ErrClosed] or the
// error of ctx (nothing happened), and [ErrUncertain].
func (r *Replicated) Txn(ctx context.Context, txn Txn) (Result, error) {
	ops, err := prepare(txn)
	if err != nil {
		return Result{}, err
	}
	var res Result
	err = r.withLeader(ctx, func(ctx context.Context, to target) error {
		var err error
		res, err = r.propose(ctx, to, ops)
		return err
	})
	return res, err
}

// Sync implements [Store].
func (r *Replicated) Sync(ctx context.Context) error {
	return r.withLeader(ctx, func(ctx context.Context, to target) error {
		index, err := r.readIndex(ctx, to)
		if err != nil {
			return err
		}
		if err := r.fsm.applied.wait(ctx, index); err != nil {
			return fmt.Errorf("wait to apply index %d: %w", index, err)
		}
		return nil
	})
}

// target is who leads, as this peer sees it.
type target struct {
	peer string // "" for this peer
	term uint64
}

// withLeader calls try until it returns anything but errNotProposed. A leader
// that could not be reached at all is no quorum for this peer.
func (r *Replicated) withLeader(ctx context.Context, try func(context.Context, target) error) error {
	limited, cancel := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	defer cancel()
	began := time.Now()
	for {
		changed := r.changed.wait()
		to, err := r.awaitLeader(limited)
		if err == nil {
			err = try(limited, to)
		}
		switch {
		case errors.Is(err, errNotProposed):
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && time.Since(began) < r.cfg.LeaderlessGrace:
			return ctx.Err() // who gives up sooner than an election takes learns nothing of quorum
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil,
			errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded):
			return r.noQuorum()
		default:
			return err
		}
		pause := time.NewTimer(retryPause)
		select {
		case <-changed:
		case <-pause.C:
		case <-limited.Done():
		}
		pause.Stop()
	}
}

// awaitLeader returns who leads. It fails with a NoQuorumError once nobody has
// for longer than an election takes.
func (r *Replicated) awaitLeader(ctx context.Context) (target, error) {
	for {
		changed := r.changed.wait()
		select {
		case <-r.closing:
			return target{}, ErrClosed
		default:
		}
		if to, ok := r.target(); ok {
			return to, ctx.Err()
		}
		grace := r.cfg.RequestTimeout // elected, and about to begin its term
		if without, yes := r.leaderlessFor(); yes {
			if grace = r.cfg.LeaderlessGrace - without; grace <= 0 {
				return target{}, r.noQuorum()
			}
		}
		t := time.NewTimer(grace)
		select {
		case <-changed:
		case <-t.C:
		case <-r.closing:
			t.Stop()
			return target{}, ErrClosed
		case <-ctx.Done():
			t.Stop()
			return target{}, ctx.Err()
		}
		t.Stop()
	}
}

func (r *Replicated) target() (target, bool) {
	if lead := r.lead.Load(); lead != nil {
		return target{term: lead.term}, true
	}
	rf := r.raft.Load()
	if rf == nil {
		return target{}, false
	}
	// The term first: a later one than the leader's is refused by it, an
	// earlier one as well, and both are tried again.
	term := rf.CurrentTerm()
	leader, _ := rf.LeaderWithID()
	if leader == "" || string(leader) == r.cfg.Name {
		return target{}, false
	}
	return target{peer: string(leader), term: term}, true
}

// propose hands ops to the leader and waits until this peer has applied them.
func (r *Replicated) propose(ctx context.Context, to target, ops []op) (Result, error) {
	w := r.pending.add(to.term)
	defer r.pending.remove(w)
	if _, term := r.fsm.position(); term > to.term {
		return Result{}, errNotProposed // the term is over, and nobody would answer w
	}
	answers := make(chan error, 1)
	if err := r.handOver(ctx, to, proposal{id: w.id, ops: ops}, answers); err != nil {
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		if errors.Is(err, ErrDiskFull) {
			return Result{}, err
		}
		return Result{}, errNotProposed
	}
	var doubt error
	tick := time.NewTicker(doubtInterval)
	defer tick.Stop()
	for {
		select {
		case o := <-w.done:
			return o.result, o.err
		case err := <-answers:
			// The log has the last word on everything but this: it is applied
			// here, or a later term begins, or time is up.
			if errors.Is(err, errNotProposed) || errors.Is(err, ErrDiskFull) {
				return Result{}, err
			}
			doubt = err
		case <-tick.C:
			if without, yes := r.leaderlessFor(); yes && without > r.cfg.LeaderlessGrace {
				return Result{}, &UncertainError{Cause: r.noQuorum()}
			}
		case <-r.closing:
			return Result{}, &UncertainError{Cause: ErrClosed}
		case <-ctx.Done():
			return Result{}, &UncertainError{Cause: errors.Join(ctx.Err(), doubt)}
		}
	}
}

// handOver passes a proposal to the leader; on error it did not. One answer or
// none comes: nil when the leader has applied it.
func (r *Replicated) handOver(ctx context.Context, to target, p proposal, answers chan<- error) error {
	if to.peer == "" {
		if err := r.room(); err != nil {
			return err
		}
		return r.batcher.submit(ctx, job{term: to.term, proposal: p, done: func(err error) { answers <- err }})
	}
	return r.client.to(to.peer).send(ctx,
		func(number uint64) []byte { return txnFrame(number, to.term, p) },
		func(a reply) { answers <- a.outcome() })
}

func (a reply) outcome() error {
	switch {
	case a.err != nil:
		return a.err
	case a.code == replyOK:
		return nil
	case a.code == replyNotProposed:
		return errNotProposed
	case a.code == replyDiskFull:
		return &fullError{a.text}
	default:
		return errors.New("the leader says: " + a.text)
	}
}

// readIndex asks the leader. A question may always be asked again.
func (r *Replicated) readIndex(ctx context.Context, to target) (uint64, error) {
	attempt, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var index uint64
	var err error
	if to.peer == "" {
		index, err = r.reads.get(attempt)
	} else {
		// A new leader answers at once; the old one may never.
		l := r.client.to(to.peer)
		defer r.onLeaderChange(attempt, to, cancel)()
		index, err = l.readIndex(attempt)
		if errors.Is(attempt.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
			l.end()
		}
	}
	switch {
	case err == nil:
		return index, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	default:
		return 0, errNotProposed
	}
}

// onLeaderChange calls f when somebody else leads than to. The caller must call
// the function that it returns, which waits until all is over.
func (r *Replicated) onLeaderChange(ctx context.Context, to target, f func()) func() {
	stop, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			changed := r.changed.wait()
			if now, ok := r.target(); !ok || now != to {
				f()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop); <-gone }
}
