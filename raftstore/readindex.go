package raftstore

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"
)

// reads answers read-indexes on the leader (Raft thesis, 6.4): an index that
// covers all that was acknowledged anywhere before the call. Calls that come
// while others are being answered share the next round of heartbeats.
type reads struct {
	lead func() *leadership
	raft func() *raft.Raft
	// await waits for Raft's answer, at most until Raft has stopped.
	await func(raft.Future) error
	wg    sync.WaitGroup

	mu      sync.Mutex
	next    *readRound
	running bool
}

type readRound struct {
	done  chan struct{}
	index uint64
	err   error
}

// get returns the index, or errNotProposed when this peer is not the leader.
func (r *reads) get(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &readRound{done: make(chan struct{})}
	}
	round := r.next
	if !r.running {
		r.running = true
		r.wg.Go(r.run)
	}
	r.mu.Unlock()
	select {
	case <-round.done:
		return round.index, round.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (r *reads) run() {
	for {
		r.mu.Lock()
		round := r.next
		r.next = nil
		if round == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		round.index, round.err = r.verify()
		close(round.done)
	}
}

// verify takes the commit index, then makes sure that this peer was the leader
// all the while: of the same term before and after, and confirmed by a majority.
// A leadership begins only when an entry of its term is applied, so the commit
// index covers all terms before.
func (r *reads) verify() (uint64, error) {
	lead, raft := r.lead(), r.raft()
	if lead == nil || raft.CurrentTerm() != lead.term {
		return 0, errNotProposed
	}
	index := raft.CommitIndex()
	if err := r.await(raft.VerifyLeader()); err != nil || raft.CurrentTerm() != lead.term {
		return 0, errNotProposed
	}
	return index, nil
}
