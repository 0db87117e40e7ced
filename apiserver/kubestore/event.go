package kubestore

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// sendChange sends what e is to this watch, if it is anything: an object that begins to
// match the predicate is added, one that ceases to match is deleted.
func (w *watcher) sendChange(e raftstore.Event) error {
	event, err := w.translate(e)
	if err != nil || event.Object == nil {
		return err
	}
	return w.send(event)
}

// translate returns an event without an object if the watch need not know of e.
func (w *watcher) translate(e raftstore.Event) (watch.Event, error) {
	none := watch.Event{}
	now, err := w.selected(e.KV)
	if err != nil {
		return none, err
	}
	// What it was before matters only if it is gone, or may have left or entered
	// the selection.
	existed := e.Prev != nil
	var before runtime.Object
	if existed && (e.KV == nil || !w.everything) {
		if before, err = w.selected(e.Prev); err != nil {
			return none, deletedCorrupt(e, err)
		}
		existed = before != nil
	}
	switch {
	case now != nil && existed:
		return watch.Event{Type: watch.Modified, Object: shallowCopy(now)}, nil
	case now != nil:
		return watch.Event{Type: watch.Added, Object: shallowCopy(now)}, nil
	case before == nil:
		return none, nil
	}
	// The last state of the object, as of the revision at which it went.
	before = shallowCopy(before)
	if err := w.s.versioner.UpdateObject(before, uint64(e.Revision)); err != nil {
		return none, fmt.Errorf("set resource version of key %q: %w", e.Key, err)
	}
	return watch.Event{Type: watch.Deleted, Object: before}, nil
}

// selected returns the shared object of kv, nil if there is none or the watch is not
// about it. As upstream, what the predicate cannot judge is not selected.
func (w *watcher) selected(kv *raftstore.KV) (runtime.Object, error) {
	if kv == nil {
		return nil, nil
	}
	obj, err := w.s.shared(w.ctx, kv)
	if err != nil || w.everything {
		return obj, err
	}
	if ok, err := w.pred.Matches(obj); err != nil || !ok {
		return nil, nil
	}
	return obj, nil
}

// deletedCorrupt says that an object that cannot be read was deleted: the client
// has to list again to learn which.
func deletedCorrupt(e raftstore.Event, err error) error {
	var corrupt *corruptObjectError
	if e.KV != nil || !errors.As(err, &corrupt) {
		return err
	}
	return storeReadError(fmt.Sprintf("saw a DELETED event, but object data is corrupt - %v", corrupt), nil)
}
