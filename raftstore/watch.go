package raftstore

import (
	"context"
	"strings"
	"sync"
)

// watchBatch is about how many events Next returns at most. A transaction is
// never split, so it may be more.
const watchBatch = 512

// Watcher delivers the changes of a prefix from the history that all watchers
// share. It holds a position, not a queue: it costs nothing while nothing
// changes, and it never blocks a writer. A consumer that is so slow that its
// position falls out of the history gets [ErrCompacted] and must list again.
type Watcher struct {
	st     *state
	prefix string
	wake   chan struct{} // has a token when there may be something to read
	done   chan struct{}
	once   sync.Once
	read   sync.Mutex // held by Next for as long as it waits
	pos    sync.Mutex // with it, holders of st.mu.RLock may touch what is below

	// Guarded by st.mu, or by its read lock together with pos.
	pending   int64 // sequence number of the first event that may match; idle if none
	delivered int64 // lower bound of Revision, and all of it once cut off
	cut       bool
}

const idle int64 = -1

// Watch implements [Store].
func (s *state) Watch(prefix string, from int64) (*Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case from > s.revision:
		return nil, &FutureRevisionError{Asked: from, Current: s.revision}
	case from <= s.hist.compact:
		return nil, ErrCompacted
	}
	w := &Watcher{
		st: s, prefix: strings.Clone(prefix), delivered: from, pending: idle,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if seq := s.hist.after(from); seq < s.hist.next {
		w.pending = seq
	}
	s.watchers.add(w)
	return w, nil
}

// Next blocks until something changed and returns it: one or more events in
// order, all events of a transaction together. It fails with [ErrCompacted] if
// the consumer was too slow or the state was replaced by a snapshot, with
// [ErrClosed] after Close or the end of the store, and with the error of ctx,
// after which it may be called again. Calls from several goroutines take turns.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	w.read.Lock()
	defer w.read.Unlock()
	for {
		select {
		case <-w.done:
			return nil, ErrClosed
		default:
		}
		events, err := w.poll()
		if len(events) > 0 || err != nil {
			return events, err
		}
		select {
		case <-w.wake:
		case <-w.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *Watcher) poll() ([]Event, error) {
	w.st.mu.RLock()
	defer w.st.mu.RUnlock()
	w.pos.Lock()
	defer w.pos.Unlock()
	h := &w.st.hist
	switch {
	case w.cut || w.pending != idle && w.pending < h.first:
		return nil, ErrCompacted
	case w.pending == idle && w.st.closed:
		return nil, ErrClosed
	case w.pending == idle:
		return nil, nil
	}
	var events []Event
	seq := w.pending
	for ; seq < h.next; seq++ {
		e := h.at(seq)
		if n := len(events); n >= watchBatch && events[n-1].Revision != e.Revision {
			break
		}
		if strings.HasPrefix(e.Key, w.prefix) {
			events = append(events, *e)
		}
	}
	if seq == h.next {
		w.pending = idle
	} else {
		w.pending = seq
		w.delivered = h.at(seq).Revision - 1
	}
	if len(events) == 0 && w.st.closed {
		return nil, ErrClosed
	}
	return events, nil
}

// Revision is the newest revision up to which everything has been returned by
// Next: a watch that resumes from it misses nothing. It grows also while nothing
// of the prefix changes, which is what a bookmark is for. To be called by the
// goroutine that calls Next, after it is through with what Next returned.
func (w *Watcher) Revision() int64 {
	w.st.mu.RLock()
	defer w.st.mu.RUnlock()
	w.pos.Lock()
	defer w.pos.Unlock()
	switch h := &w.st.hist; {
	case w.cut || w.pending != idle && w.pending < h.first:
		return w.delivered
	case w.pending == idle:
		return w.st.revision
	default:
		return h.at(w.pending).Revision - 1
	}
}

// Close ends the watch: Next returns [ErrClosed], also one that waits. The one
// who called Watch must call it. It may be called more than once.
func (w *Watcher) Close() {
	w.once.Do(func() {
		close(w.done)
		w.st.mu.Lock()
		defer w.st.mu.Unlock()
		w.st.watchers.remove(w)
	})
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// watchIndex finds the watchers whose prefix a key has. There are few distinct
// lengths of prefixes, so a change costs a few map lookups, however many
// watchers there are. It is guarded by state.mu.
type watchIndex struct {
	byPrefix map[string]map[*Watcher]struct{}
	lengths  map[int]int // how many prefixes of byPrefix have the length
}

func (x *watchIndex) add(w *Watcher) {
	set := x.byPrefix[w.prefix]
	if set == nil {
		set = map[*Watcher]struct{}{}
		x.byPrefix[w.prefix] = set
		x.lengths[len(w.prefix)]++
	}
	set[w] = struct{}{}
}

func (x *watchIndex) remove(w *Watcher) {
	set := x.byPrefix[w.prefix]
	if _, ok := set[w]; !ok {
		return
	}
	delete(set, w)
	if len(set) > 0 {
		return
	}
	delete(x.byPrefix, w.prefix)
	if x.lengths[len(w.prefix)]--; x.lengths[len(w.prefix)] == 0 {
		delete(x.lengths, len(w.prefix))
	}
}

// wake tells the watchers of key about the event seq.
func (x *watchIndex) wake(key string, seq int64) {
	for n := range x.lengths {
		if n > len(key) {
			continue
		}
		for w := range x.byPrefix[key[:n]] {
			if w.pending == idle {
				w.pending = seq
				w.signal()
			}
		}
	}
}

func (x *watchIndex) wakeAll() {
	for _, set := range x.byPrefix {
		for w := range set {
			w.signal()
		}
	}
}

// cutOff ends all watches, because the state that was at revision is replaced.
func (x *watchIndex) cutOff(revision int64) {
	for _, set := range x.byPrefix {
		for w := range set {
			if w.pending == idle {
				w.delivered = revision
			}
			w.cut = true
			w.signal()
		}
	}
}
