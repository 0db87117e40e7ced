package kubestore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// decoded is what a KV remembers: the object its bytes stand for, with its
// resource version set. It is shared and must not be changed.
type decoded struct {
	mu  sync.Mutex // held while decoding, so that many watchers decode once
	obj atomic.Pointer[remembered]
	// retired is set once a newer value has replaced the KV, which from then on lives
	// only in the history; gone, under mu, once the object was dropped for that reason.
	retired atomic.Bool
	gone    bool
}

// remembered is an object and who decoded it. Two storages may read the same bytes as
// different objects: an internal type each, or a version each of a custom resource.
type remembered struct {
	object runtime.Object
	by     *reader
}

// reader tells storages apart, and outlives them where they are remembered: a pointer
// to the storage itself would keep the schemas of a kind that was redefined.
type reader struct{ _ byte }

// of returns the object if s decoded it, nil otherwise.
func (d *decoded) of(s *Storage) runtime.Object {
	if r := d.obj.Load(); r != nil && r.by == s.self {
		return r.object
	}
	return nil
}

// errNoMemo tells KV.Memo to keep nothing; see peek.
var errNoMemo = errors.New("nothing decoded yet")

func newMemo(*raftstore.KV) (any, error) { return &decoded{}, nil }

func noMemo(*raftstore.KV) (any, error) { return nil, errNoMemo }

// memo returns what kv remembers for this resource, nil if it may not remember.
func (s *Storage) memo(kv *raftstore.KV, build func(*raftstore.KV) (any, error)) *decoded {
	if s.uncached || s.transformer != nil {
		return nil
	}
	m, err := kv.Memo(build)
	if err != nil {
		return nil
	}
	d, _ := m.(*decoded)
	return d
}

// peek returns the shared object if kv has one, nil otherwise.
func (s *Storage) peek(kv *raftstore.KV) runtime.Object {
	d := s.memo(kv, noMemo)
	if d == nil {
		return nil
	}
	return d.of(s)
}

// shared returns the object of kv, which the caller must not change in any way.
func (s *Storage) shared(ctx context.Context, kv *raftstore.KV) (runtime.Object, error) {
	d := s.memo(kv, newMemo)
	if d == nil {
		return s.decodeKV(ctx, kv)
	}
	if obj := d.of(s); obj != nil {
		return obj, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if obj := d.of(s); obj != nil {
		return obj, nil
	}
	obj, err := s.decodeKV(ctx, kv)
	if err != nil {
		return nil, err
	}
	if !d.gone {
		d.obj.Store(&remembered{obj, s.self}) // whoever asked last is who asks again
	}
	return obj, nil
}

// shallowCopy copies the struct that obj points to and shares what that refers to:
// registries decorate watched objects in place, by assigning fields. An unstructured object is one
// map, so nothing of it can be shared.
func shallowCopy(obj runtime.Object) runtime.Object {
	if _, ok := obj.(runtime.Unstructured); ok {
		return obj.DeepCopyObject()
	}
	from := reflect.ValueOf(obj).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	return to.Interface().(runtime.Object)
}

// private sets out to the object of kv, which is then the caller's alone.
func (s *Storage) private(ctx context.Context, kv *raftstore.KV, out runtime.Object) error {
	if obj := s.peek(kv); obj != nil && reflect.TypeOf(out) == s.objType {
		reflect.ValueOf(out).Elem().Set(reflect.ValueOf(obj.DeepCopyObject()).Elem())
		return nil
	}
	data, _, err := s.plain(ctx, kv)
	if err != nil {
		return err
	}
	return s.decode(kv.Key, data, out, kv.ModRevision)
}

func (s *Storage) decodeKV(ctx context.Context, kv *raftstore.KV) (runtime.Object, error) {
	data, _, err := s.plain(ctx, kv)
	if err != nil {
		return nil, err
	}
	obj := s.newFunc()
	if err := s.decode(kv.Key, data, obj, kv.ModRevision); err != nil {
		return nil, err
	}
	return obj, nil
}

// plain returns the encoded object of kv, and whether it should be written
// again although it is unchanged (an old encryption key).
func (s *Storage) plain(ctx context.Context, kv *raftstore.KV) (data []byte, stale bool, err error) {
	if s.transformer == nil {
		return kv.Value, false, nil
	}
	data, stale, err = s.transformer.TransformFromStorage(ctx, kv.Value, value.DefaultContext(kv.Key))
	if err != nil {
		return nil, false, transformFailed(kv.Key, err)
	}
	return data, stale, nil
}

// decode sets into to the object that data stands for, as of revision rev.
func (s *Storage) decode(key string, data []byte, into runtime.Object, rev int64) error {
	if _, err := conversion.EnforcePtr(into); err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	if _, _, err := s.codec.Decode(data, nil, into); err != nil {
		return decodeFailed(key, &corruptObjectError{err: err, kind: undecodable, revision: rev})
	}
	// An object without metadata has no place for a resource version, and is none the worse.
	if _, err := meta.Accessor(into); err != nil {
		return nil
	}
	return s.versioner.UpdateObject(into, uint64(rev))
}

// encode returns what is to be stored for obj, before and after transformation. It
// clears what is not stored from obj.
func (s *Storage) encode(ctx context.Context, key string, obj runtime.Object) (data, stored []byte, err error) {
	if err := s.versioner.PrepareObjectForStorage(obj); err != nil {
		return nil, nil, fmt.Errorf("prepare object for storage: %w", err)
	}
	data, err = runtime.Encode(s.codec, obj)
	if err != nil || s.transformer == nil {
		return data, data, err
	}
	stored, err = s.transformer.TransformToStorage(ctx, data, value.DefaultContext(key))
	if err != nil {
		return nil, nil, transformFailed(key, err)
	}
	return data, stored, nil
}
