package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
)

// outcome is what became of a proposal, as this peer saw it when it applied the log.
type outcome struct {
	result Result
	err    error // nil, errNotProposed, or an UncertainError
}

// pending is the proposals of this peer that somebody waits for. They are
// answered from the log that this peer applies itself, so that an answer implies
// that the write can be read here, and results need not travel.
type pending struct {
	session uint64
	seq     atomic.Uint64

	mu      sync.Mutex
	waiting map[proposalID]*waiter
}

type waiter struct {
	id   proposalID
	term uint64
	done chan outcome // buffered
}

func newPending(session uint64) *pending {
	return &pending{session: session, waiting: map[proposalID]*waiter{}}
}

// add registers a proposal for a term. The caller must remove it.
func (p *pending) add(term uint64) *waiter {
	w := &waiter{id: proposalID{p.session, p.seq.Add(1)}, term: term, done: make(chan outcome, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting[w.id] = w
	return w
}

func (p *pending) remove(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, w.id)
}

// resolve answers the proposal, if it is one of this peer that is still waited for.
func (p *pending) resolve(id proposalID, o outcome) {
	if id.session != p.session {
		return
	}
	p.mu.Lock()
	w := p.waiting[id]
	delete(p.waiting, id)
	p.mu.Unlock()
	if w != nil {
		w.done <- o
	}
}

// settle answers all proposals for terms before term with err.
func (p *pending) settle(term uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, w := range p.waiting {
		if w.term < term {
			delete(p.waiting, id)
			w.done <- outcome{err: err} // buffered, and only the one who deletes it sends
		}
	}
}

// progress lets callers wait until this peer has applied an index.
type progress struct {
	mu      sync.Mutex
	index   uint64
	waiting map[chan struct{}]uint64
}

func (p *progress) advance(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = max(p.index, index)
	for ch, want := range p.waiting {
		if want <= p.index {
			close(ch)
			delete(p.waiting, ch)
		}
	}
}

func (p *progress) get() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index
}

func (p *progress) wait(ctx context.Context, index uint64) error {
	p.mu.Lock()
	if index <= p.index {
		p.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	if p.waiting == nil {
		p.waiting = map[chan struct{}]uint64{}
	}
	p.waiting[ch] = index
	p.mu.Unlock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.waiting, ch)
		p.mu.Unlock()
		return ctx.Err()
	}
}
