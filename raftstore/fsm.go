package raftstore

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// fsm is the thin layer between Raft's log and the state machine. Raft calls it
// from one goroutine.
type fsm struct {
	st      *state
	pending *pending
	applied progress // the last entry seen, command or configuration
	term    uint64   // of that entry; written under posMu, read by Raft's goroutine without
	posMu   sync.Mutex

	failure sync.Once
	failed  chan error // gets the first entry that cannot be applied; Run ends with it
	broken  bool
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(st *state, p *pending) *fsm {
	return &fsm{st: st, pending: p, failed: make(chan error, 1)}
}

// Apply implements [raft.FSM].
func (f *fsm) Apply(l *raft.Log) any {
	return f.ApplyBatch([]*raft.Log{l})[0]
}

// position is the index and the term of the last entry seen.
func (f *fsm) position() (index, term uint64) {
	f.posMu.Lock()
	defer f.posMu.Unlock()
	return f.applied.get(), f.term
}

func (f *fsm) moveTo(index, term uint64) {
	f.posMu.Lock()
	defer f.posMu.Unlock()
	f.term = term
	f.applied.advance(index)
}

// ApplyBatch implements [raft.BatchingFSM]. The responses are the entry's term,
// or an error when this peer can apply nothing any more.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	for i, l := range logs {
		responses[i] = l.Term
		if err := f.apply(l); err != nil {
			responses[i] = err
		}
	}
	return responses
}

func (f *fsm) apply(l *raft.Log) error {
	if f.broken {
		return errBroken
	}
	// What start has replayed from disk, or a snapshot holds, comes again from Raft.
	if l.Index <= f.applied.get() {
		return nil
	}
	if l.Type == raft.LogCommand {
		if err := f.command(l); err != nil {
			f.fail(fmt.Errorf("apply log entry %d: %w", l.Index, err))
			return errBroken
		}
	}
	newer := l.Term > f.term
	f.moveTo(l.Index, l.Term) // first: see propose
	if newer {
		// The log's terms only grow: what was proposed for an earlier one and is
		// not in yet will never be.
		f.pending.settle(l.Term, errNotProposed)
	}
	return nil
}

// errBroken says that an earlier entry could not be applied.
var errBroken = errors.New("this peer cannot apply the log any more")

// fail stops this peer: to go on without the entry would make its state differ.
func (f *fsm) fail(err error) {
	f.broken = true
	f.failure.Do(func() { f.failed <- err })
}

func (f *fsm) command(l *raft.Log) error {
	e, err := decodeEntry(l.Data)
	if err != nil {
		return err
	}
	if e.kind == entryTerm {
		return nil
	}
	if e.term != l.Term {
		for _, p := range e.proposals {
			f.pending.resolve(p.id, outcome{err: errNotProposed})
		}
		return nil
	}
	batch := make([][]op, len(e.proposals))
	for i, p := range e.proposals {
		batch[i] = p.ops
	}
	for i, res := range f.st.apply(batch) {
		f.pending.resolve(e.proposals[i].id, outcome{result: res})
	}
	return nil
}

// Snapshot implements [raft.FSM]. It only takes a reference: the tree is
// immutable, and is written while the state goes on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken {
		return nil, errBroken
	}
	t, revision := f.st.view()
	return &fsmSnapshot{image{index: f.applied.get(), term: f.term, revision: revision, tree: t}}, nil
}

// Restore implements [raft.FSM]. A snapshot that is not newer than this state is
// part of it already (Raft sends one to a peer whose log it thinks is short), so
// it is skipped and revisions never go back.
func (f *fsm) Restore(r io.ReadCloser) error {
	m, err := readImage(r)
	if err != nil {
		return err
	}
	f.load(m)
	return nil
}

func (f *fsm) load(m *image) {
	if m.index <= f.applied.get() {
		return
	}
	f.st.replace(m.tree, m.revision)
	f.moveTo(m.index, m.term)
	f.pending.settle(m.term+1, &UncertainError{Cause: errors.New("a snapshot replaced the state of this peer meanwhile")})
}

type fsmSnapshot struct{ image }

// Persist implements [raft.FSMSnapshot].
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements [raft.FSMSnapshot]: the garbage collector has the rest.
func (s *fsmSnapshot) Release() {}
