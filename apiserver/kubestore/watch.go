package kubestore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"

	"github.com/rundigitalplatform/rookery/raftstore"
)

const (
	// watchBuffer decouples the decoding from the client's connection. The
	// backlog itself waits in the store's history, which all watchers share.
	watchBuffer = 32
	// bookmarkBeforeEnd is how long before the end of a watch its client gets
	// a last bookmark to resume from, as from kube-apiserver.
	bookmarkBeforeEnd = 2 * time.Second
	// snapshotTries bounds how often a list for a watch is repeated because the
	// history moved on past it before the watch began. Once is rare already.
	snapshotTries = 5
)

// Watch implements storage.Interface. The objects share memory with those of other
// watches; see the package comment. ListOptions.RecordTimestamps is for a watch
// cache above the storage, of which there is none, and is ignored.
func (s *Storage) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	prefix, err := storage.PrepareKey(s.prefix, key, opts.Recursive)
	if err != nil {
		return nil, err
	}
	rev, err := s.versioner.ParseResourceVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &watcher{
		s: s, key: prefix, pred: opts.Predicate, recursive: opts.Recursive,
		everything: opts.Predicate.Empty(),
		initial:    wantsInitialEvents(rev, opts),
		bookmarks:  opts.ProgressNotify || opts.Predicate.AllowWatchBookmarks,
		out:        make(chan watch.Event, watchBuffer),
	}
	w.endMark = w.initial && opts.SendInitialEvents != nil && opts.Predicate.AllowWatchBookmarks
	ctx, cancel := context.WithCancel(ctx)
	outlived := context.AfterFunc(s.open, cancel)
	w.ctx, w.cancel = ctx, func() { outlived(); cancel() }

	// What goes wrong from here on is told in the stream, as clients expect.
	failed := w.begin(rev, opts.ResourceVersion)
	if w.bookmarks {
		s.mu.Lock()
		s.watchers[w] = struct{}{}
		s.mu.Unlock()
	}
	go w.run(failed)
	utilflowcontrol.WatchInitialized(ctx)
	return w, nil
}

// wantsInitialEvents tells whether a watch begins with what exists, as ADDED events.
func wantsInitialEvents(rev uint64, opts storage.ListOptions) bool {
	if opts.SendInitialEvents == nil {
		return rev == 0
	}
	return *opts.SendInitialEvents
}

// RequestWatchProgress implements storage.Interface: every watch of the resource that
// takes bookmarks gets one now.
func (s *Storage) RequestWatchProgress(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.requested.Store(true)
		if interrupt := w.interrupt.Load(); interrupt != nil {
			(*interrupt)()
		}
	}
	return nil
}

// watcher is one watch. Its only goroutine is run.
type watcher struct {
	s          *Storage
	key        string // of one object, or the prefix of many
	recursive  bool
	pred       storage.SelectionPredicate
	everything bool // pred selects all
	initial    bool // begin with what exists
	endMark    bool // and mark its end
	bookmarks  bool

	ctx    context.Context
	cancel context.CancelFunc
	out    chan watch.Event

	sub   *raftstore.Watcher
	list  []*raftstore.KV // what exists, if initial
	after int64           // the client has seen everything up to this revision

	requested atomic.Bool                        // a bookmark is wanted now
	interrupt atomic.Pointer[context.CancelFunc] // ends the wait for the next event
}

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.cancel() }

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.out }

// begin takes the subscription, and the snapshot it starts from if there is one.
func (w *watcher) begin(rev uint64, rv string) error {
	store := w.s.store
	if rv == "" {
		if err := w.s.catchUp(w.ctx); err != nil {
			return err
		}
	}
	if rev > 0 {
		// A revision of the future is refused only where the answer would claim to
		// hold it. A plain watch waits: this peer may be cut off.
		if err := w.s.await(w.ctx, rev); err != nil && (w.initial || !storage.IsTooLargeResourceVersion(err)) {
			return err
		}
	}
	var err error
	for range snapshotTries {
		from := store.Revision()
		switch {
		case w.initial:
			page, err := store.List(w.key, "", 0, 0)
			if err != nil {
				return readError(err)
			}
			w.list, from = page.KVs, page.Revision
			w.after = from
		case rev > 0:
			w.after = int64(rev)
			from = min(from, w.after)
		default:
			w.after = from
		}
		w.sub, err = store.Watch(w.key, from)
		if !errors.Is(err, raftstore.ErrCompacted) || rev > 0 && !w.initial {
			break
		}
	}
	return watchError(err)
}

func (w *watcher) run(failed error) {
	defer close(w.out)
	defer w.cancel()
	if w.bookmarks {
		defer w.forget()
	}
	if w.sub != nil {
		defer w.sub.Close()
	}
	err := failed
	if err == nil {
		err = w.sendInitial()
	}
	if err == nil {
		err = w.follow()
	}
	// A client that has gone needs no explanation.
	if w.ctx.Err() == nil {
		w.send(errorEvent(err))
	}
}

func (w *watcher) forget() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.watchers, w)
}

// sendInitial sends what exists and, if wanted, the mark of its end.
func (w *watcher) sendInitial() error {
	list := w.list
	w.list = nil // it must not live as long as the watch
	for i, kv := range list {
		list[i] = nil
		if !w.recursive && kv.Key != w.key {
			continue
		}
		if err := w.sendChange(raftstore.Event{Revision: kv.ModRevision, Key: kv.Key, KV: kv}); err != nil {
			return err
		}
	}
	if w.endMark {
		return w.bookmark(w.after, true)
	}
	return nil
}

// follow sends changes and bookmarks until the watch ends, and returns why.
func (w *watcher) follow() error {
	next := w.nextBookmark()
	for {
		events, err := w.next(next)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Revision <= w.after || !w.recursive && e.Key != w.key {
				continue
			}
			if err := w.sendChange(e); err != nil {
				return err
			}
			w.s.retire(e.Prev)
		}
		if w.bookmarks && (w.requested.Swap(false) || !time.Now().Before(next)) {
			next = w.nextBookmark()
			if rev := w.sub.Revision(); rev >= w.after {
				if err := w.bookmark(rev, false); err != nil {
					return err
				}
			}
		}
	}
}

// next returns the next events, none when it is time for a bookmark.
func (w *watcher) next(bookmark time.Time) ([]raftstore.Event, error) {
	if !w.bookmarks {
		events, err := w.sub.Next(w.ctx)
		return events, watchError(err)
	}
	ctx, cancel := context.WithDeadline(w.ctx, bookmark)
	defer cancel()
	w.interrupt.Store(&cancel)
	if w.requested.Load() { // before there was anything to interrupt
		cancel()
	}
	events, err := w.sub.Next(ctx)
	if err != nil && ctx.Err() != nil && w.ctx.Err() == nil {
		return nil, nil
	}
	return events, watchError(err)
}

func (w *watcher) nextBookmark() time.Time {
	now := time.Now()
	next := now.Add(w.s.bookmarks)
	if end, ok := w.ctx.Deadline(); ok {
		if last := end.Add(-bookmarkBeforeEnd); last.After(now) && last.Before(next) {
			next = last
		}
	}
	return next
}

func (w *watcher) bookmark(rev int64, endMark bool) error {
	obj := w.s.newFunc()
	if err := w.s.versioner.UpdateObject(obj, uint64(rev)); err != nil {
		return fmt.Errorf("set resource version of bookmark: %w", err)
	}
	if endMark {
		if err := storage.AnnotateInitialEventsEndBookmark(obj); err != nil {
			return fmt.Errorf("mark end of initial events: %w", err)
		}
	}
	return w.send(watch.Event{Type: watch.Bookmark, Object: obj})
}

func (w *watcher) send(e watch.Event) error {
	select {
	case w.out <- e:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// watchError says in the API's terms why a watch ended.
func watchError(err error) error {
	if errors.Is(err, raftstore.ErrCompacted) {
		return apierrors.NewResourceExpired(watchExpired)
	}
	return readError(err)
}

func errorEvent(err error) watch.Event {
	var known apierrors.APIStatus
	if !errors.As(err, &known) {
		known = apierrors.NewInternalError(err)
	}
	status := known.Status()
	return watch.Event{Type: watch.Error, Object: &status}
}
