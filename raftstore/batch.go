package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// batchBytes bounds a log entry with more than one transaction in it. A
	// heartbeat does not wait for entries, so this is about memory alone.
	batchBytes = 512 << 10
	batchTxns  = 256
	// batchesInFlight: while one is on its way to the disks the next may be as
	// well; what comes meanwhile waits, and makes one entry of many.
	batchesInFlight = 2
)

// job is a proposal for the log of this peer, the leader of term.
type job struct {
	term     uint64
	proposal proposal
	// done is called once and must not block: nil when applied here,
	// errNotProposed, or an UncertainError.
	done func(error)
}

// batcher makes log entries of the proposals of this peer and those forwarded to it.
type batcher struct {
	jobs     chan job
	inFlight atomic.Int32
	wg       sync.WaitGroup
}

func newBatcher() *batcher { return &batcher{jobs: make(chan job, batchTxns)} }

// submit hands a job over; on error it was not, and done will not be called.
func (b *batcher) submit(ctx context.Context, j job) error {
	select {
	case b.jobs <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run proposes jobs until ctx ends; await waits for Raft's answer, at most until Raft has
// stopped. settled is called after each entry that is applied when no other is on its way.
func (b *batcher) run(ctx context.Context, r *raft.Raft, await func(raft.Future) error, settled func()) {
	slots := make(chan struct{}, batchesInFlight)
	defer b.drain()
	defer b.wg.Wait()
	for {
		var first job
		select {
		case first = <-b.jobs:
		case <-ctx.Done():
			return
		}
		for next := &first; next != nil; {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				next.done(errNotProposed)
				return
			}
			var batch []job
			batch, next = b.collect(*next)
			b.inFlight.Add(1)
			b.wg.Go(func() {
				err := propose(r, await, batch)
				<-slots
				if b.inFlight.Add(-1) == 0 && err == nil && len(b.jobs) == 0 {
					settled()
				}
				for _, j := range batch {
					j.done(err)
				}
			})
		}
	}
}

// collect takes what else is waiting. The job it returns did not fit.
func (b *batcher) collect(first job) ([]job, *job) {
	batch, size := []job{first}, proposalBytes(first.proposal.ops)
	for len(batch) < batchTxns {
		select {
		case j := <-b.jobs:
			size += proposalBytes(j.proposal.ops)
			if j.term != first.term || size > batchBytes {
				return batch, &j
			}
			batch = append(batch, j)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// drain answers what was submitted too late. Whoever submits later still must
// watch for the end of the store.
func (b *batcher) drain() {
	for {
		select {
		case j := <-b.jobs:
			j.done(errNotProposed)
		default:
			return
		}
	}
}

func propose(r *raft.Raft, await func(raft.Future) error, batch []job) error {
	e := entry{kind: entryBatch, term: batch[0].term, proposals: make([]proposal, len(batch))}
	now := time.Now()
	for i, j := range batch {
		stamp(j.proposal.ops, now)
		e.proposals[i] = j.proposal
	}
	f := r.Apply(e.encode(), 0)
	switch err := await(f); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return errNotProposed
	default:
		return &UncertainError{Cause: fmt.Errorf("append to the log: %w", err)}
	}
	if err, failed := f.Response().(error); failed {
		return &UncertainError{Cause: err}
	}
	return nil
}
