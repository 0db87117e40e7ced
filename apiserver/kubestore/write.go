package kubestore

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Create implements storage.Interface.
func (s *Storage) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	key, err := storage.PrepareKey(s.prefix, key, false)
	if err != nil {
		return err
	}
	if rev, err := s.versioner.ObjectResourceVersion(obj); err == nil && rev != 0 {
		return storage.ErrResourceVersionSetOnCreate
	}
	data, stored, err := s.encode(ctx, key, obj)
	if err != nil {
		return err
	}
	res, err := s.store.Txn(ctx, raftstore.Txn{{Key: key, Kind: raftstore.Put, Value: stored, TTL: seconds(ttl)}})
	if err != nil {
		return writeError(err)
	}
	if !res.Applied {
		return storage.NewKeyExistsError(key, 0)
	}
	if out == nil {
		return nil
	}
	return s.decode(key, data, out, res.Revision)
}

// GuaranteedUpdate implements storage.Interface. cachedExistingObject is not
// used: the local state is as cheap to read and never older. A nil ttl keeps
// what remains of the object's time to live.
func (s *Storage) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, tryUpdate storage.UpdateFunc, _ runtime.Object) error {
	c, err := s.begin(ctx, key, destination)
	if err != nil {
		return err
	}
	c.ignoreNotFound = ignoreNotFound
	for {
		cur, err := c.load()
		if err == nil {
			err = preconditions.Check(c.key, cur.obj)
		}
		var updated runtime.Object
		var ttl *uint64
		if err == nil {
			updated, ttl, err = tryUpdate(cur.obj, cur.meta)
		}
		if err != nil {
			if again, err := c.refuse(err); !again {
				return err
			}
			continue
		}
		data, stored, err := s.encode(ctx, c.key, updated)
		if err != nil {
			return err
		}
		if c.kv != nil && !cur.stale && bytes.Equal(data, cur.data) {
			// Nothing to write, if that is still what is stored.
			if again, err := c.refuse(nil); again || err != nil {
				if err != nil {
					return err
				}
				continue
			}
			return s.decode(c.key, data, destination, c.kv.ModRevision)
		}
		if ttl == nil && cur.meta.TTL > 0 {
			left := uint64(cur.meta.TTL)
			ttl = &left
		}
		op := raftstore.Op{Key: c.key, Kind: raftstore.Put, Value: stored}
		if ttl != nil {
			op.TTL = seconds(*ttl)
		}
		rev, done, err := c.commit(op)
		if err != nil {
			return err
		}
		if done {
			return s.decode(c.key, data, destination, rev)
		}
	}
}

// Delete implements storage.Interface. cachedExistingObject is not used, as in
// GuaranteedUpdate.
func (s *Storage) Delete(ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, _ runtime.Object, opts storage.DeleteOptions) error {
	c, err := s.begin(ctx, key, out)
	if err != nil {
		return err
	}
	c.wantCorrupt = opts.ExpectTransformOrDecodeError && unsafeDeletion()
	for {
		cur, err := c.load()
		if err == nil && preconditions != nil {
			err = preconditions.Check(c.key, cur.obj)
		}
		if err == nil {
			err = validate(ctx, cur.obj)
		}
		if err != nil {
			if again, err := c.refuse(err); !again {
				return err
			}
			continue
		}
		rev, done, err := c.commit(raftstore.Op{Key: c.key, Kind: raftstore.Delete})
		if err != nil {
			return err
		}
		if done {
			if c.wantCorrupt {
				return nil
			}
			return s.decode(c.key, cur.data, out, rev)
		}
	}
}

// change is one read-modify-write of a key. It begins with what this peer has, which
// may be stale; the transaction finds that out.
type change struct {
	s   *Storage
	ctx context.Context
	key string
	typ reflect.Type

	kv      *raftstore.KV // what the attempt starts from, nil if absent
	current bool          // kv was the newest when it was read, not only the newest here

	ignoreNotFound bool
	wantCorrupt    bool // go on only if the object cannot be read
}

// snapshot is the object that an attempt starts from.
type snapshot struct {
	obj   runtime.Object // the attempt's own; nil if corrupt and wanted so
	data  []byte
	stale bool
	meta  storage.ResponseMeta
}

func (s *Storage) begin(ctx context.Context, key string, out runtime.Object) (*change, error) {
	key, err := storage.PrepareKey(s.prefix, key, false)
	if err != nil {
		return nil, err
	}
	if _, err := conversion.EnforcePtr(out); err != nil {
		return nil, fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	kv, _ := s.store.Get(key)
	return &change{s: s, ctx: ctx, key: key, typ: reflect.TypeOf(out).Elem(), kv: kv}, nil
}

func (c *change) load() (snapshot, error) {
	var cur snapshot
	obj, ok := reflect.New(c.typ).Interface().(runtime.Object)
	if !ok {
		return cur, fmt.Errorf("%s is no API object", c.typ)
	}
	if c.kv == nil {
		if !c.ignoreNotFound {
			return cur, storage.NewKeyNotFoundError(c.key, 0)
		}
		cur.obj = obj
		return cur, nil
	}
	cur.meta.ResourceVersion = uint64(c.kv.ModRevision)
	if c.kv.Expires != 0 {
		cur.meta.TTL = max(1, c.kv.Expires-time.Now().Unix())
	}
	var err error
	cur.data, cur.stale, err = c.s.plain(c.ctx, c.kv)
	if c.wantCorrupt {
		// What is remembered does not count, only what is stored.
		if err == nil {
			err = c.s.decode(c.key, cur.data, obj, c.kv.ModRevision)
		}
		if err == nil {
			return cur, storage.NewInvalidObjError(c.key, "unsafe deletion is not allowed because the object is decodable from storage")
		}
		return cur, nil
	}
	if err == nil {
		err = c.s.private(c.ctx, c.kv, obj)
	}
	cur.obj = obj
	return cur, err
}

// refuse is called before an attempt ends without a write, with its error. It
// returns false and that error if the attempt started from the newest state, true if
// that has changed and another attempt is due.
func (c *change) refuse(err error) (again bool, _ error) {
	if c.current {
		return false, err
	}
	if err := c.s.store.Sync(c.ctx); err != nil {
		return false, writeError(err)
	}
	kv, _ := c.s.store.Get(c.key)
	changed := (kv == nil) != (c.kv == nil) || kv != nil && kv.ModRevision != c.kv.ModRevision
	c.kv, c.current = kv, true
	return changed, err
}

// commit writes op if the key still is as the attempt started from. If not, it
// returns done == false and the next attempt starts from what was found instead.
func (c *change) commit(op raftstore.Op) (rev int64, done bool, err error) {
	if c.kv != nil {
		op.If = c.kv.ModRevision
	}
	res, err := c.s.store.Txn(c.ctx, raftstore.Txn{op})
	if err != nil {
		return 0, false, writeError(err)
	}
	if res.Applied {
		c.s.retire(c.kv)
		return res.Revision, true, nil
	}
	c.kv, c.current = res.Current[0], true
	return 0, false, nil
}

func seconds(ttl uint64) time.Duration { return time.Duration(ttl) * time.Second }
