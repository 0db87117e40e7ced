package kubestore

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// maxPage bounds how far a list with a limit and a selector widens its pages while it
// looks for objects that match.
const maxPage = 10000

// Get implements storage.Interface. out is the caller's alone.
func (s *Storage) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	key, err := storage.PrepareKey(s.prefix, key, false)
	if err != nil {
		return err
	}
	if err := s.freshen(ctx, opts.ResourceVersion); err != nil {
		return err
	}
	kv, _ := s.store.Get(key)
	if kv == nil {
		if opts.IgnoreNotFound {
			return runtime.SetZeroValue(out)
		}
		return storage.NewKeyNotFoundError(key, 0)
	}
	return getError(key, s.private(ctx, kv, out))
}

// GetList implements storage.Interface. All pages of one list are read at one
// revision. The items share memory with other lists; see the package comment.
func (s *Storage) GetList(ctx context.Context, key string, opts storage.ListOptions, listObj runtime.Object) error {
	prefix, err := storage.PrepareKey(s.prefix, key, opts.Recursive)
	if err != nil {
		return err
	}
	items, err := itemsOf(listObj)
	if err != nil {
		return err
	}
	at, start, err := storage.ValidateListOptions(prefix, s.versioner, opts)
	if err != nil {
		return err
	}
	if at > 0 {
		err = s.await(ctx, uint64(at))
	} else {
		err = s.freshen(ctx, opts.ResourceVersion)
	}
	if err != nil {
		return err
	}

	l := lister{s: s, ctx: ctx, prefix: prefix, opts: opts, items: items, at: at, start: start}
	if err := l.run(); err != nil {
		return err
	}
	if items.IsNil() {
		items.Set(reflect.MakeSlice(items.Type(), 0, 0))
	}
	token, remaining, err := storage.PrepareContinueToken(l.last, prefix, l.at, l.total, l.more, opts)
	if err != nil {
		return err
	}
	if err := s.versioner.UpdateList(listObj, uint64(l.at), token, remaining); err != nil {
		return err
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.ShardedListAndWatch) {
		opts.Predicate.SetShardInfoOnList(listObj)
	}
	return nil
}

// itemsOf returns the settable slice of a list's items.
func itemsOf(list runtime.Object) (reflect.Value, error) {
	ptr, err := meta.GetItemsPtr(list)
	if err != nil {
		return reflect.Value{}, err
	}
	items, err := conversion.EnforcePtr(ptr)
	if err != nil || items.Kind() != reflect.Slice {
		return reflect.Value{}, fmt.Errorf("need ptr to slice: %w", err)
	}
	return items, nil
}

// lister gathers one page for a client, from as many pages of the store as it takes.
type lister struct {
	s      *Storage
	ctx    context.Context
	prefix string
	opts   storage.ListOptions
	items  reflect.Value

	at      int64  // revision to read, 0 until the first page has told the newest
	start   string // first key to read
	last    string // last key read
	total   int64
	more    bool // objects remain beyond last
	corrupt corruptObjects
}

func (l *lister) run() error {
	limit := int(l.opts.Predicate.Limit)
	for {
		page, err := l.page(limit)
		if err != nil {
			return err
		}
		l.at, l.total = page.Revision, page.Total
		full, err := l.take(page.KVs)
		if err != nil {
			return err
		}
		l.more = page.More || full
		if full || !page.More || l.full() {
			return l.corrupt.err(l.s.gr)
		}
		l.start = l.last + "\x00"
		// Few objects match; take bigger steps to find them.
		limit = min(limit*2, max(limit, maxPage))
	}
}

func (l *lister) page(limit int) (raftstore.ListResult, error) {
	if !l.opts.Recursive {
		// The key itself comes before all that only begin with it.
		page, err := l.s.store.List(l.prefix, l.prefix, l.at, 1)
		if err != nil {
			return page, readError(err)
		}
		if len(page.KVs) > 0 && page.KVs[0].Key != l.prefix {
			page.KVs = nil
		}
		page.Total, page.More = int64(len(page.KVs)), false
		return page, nil
	}
	page, err := l.s.store.List(l.prefix, l.start, l.at, limit)
	if errors.Is(err, raftstore.ErrCompacted) && l.opts.Predicate.Continue != "" {
		return page, continueError(l.start, l.prefix)
	}
	return page, readError(err)
}

func (l *lister) full() bool {
	limit := l.opts.Predicate.Limit
	return limit > 0 && int64(l.items.Len()) >= limit
}

// take appends those of kvs that match, and tells whether it left some because
// the client's limit was reached.
func (l *lister) take(kvs []*raftstore.KV) (bool, error) {
	everything := l.opts.Predicate.Empty()
	if everything {
		l.items.Grow(len(kvs))
	}
	for _, kv := range kvs {
		if l.full() {
			return true, nil
		}
		l.last = kv.Key
		if l.ctx.Err() != nil {
			return false, storage.NewTimeoutError(kv.Key, "request did not complete within requested timeout")
		}
		obj, err := l.s.shared(l.ctx, kv)
		if err != nil {
			if !l.corrupt.add(kv.Key, err) {
				return false, l.corrupt.err(l.s.gr)
			}
			continue
		}
		if !everything {
			if ok, err := l.opts.Predicate.Matches(obj); err != nil || !ok {
				continue
			}
		}
		l.append(obj)
	}
	return false, nil
}

func (l *lister) append(obj runtime.Object) {
	if _, ok := obj.(runtime.Unstructured); ok {
		obj = obj.DeepCopyObject()
	}
	n := l.items.Len()
	if n == l.items.Cap() {
		l.items.Grow(1)
	}
	l.items.SetLen(n + 1)
	l.items.Index(n).Set(reflect.ValueOf(obj).Elem())
}
