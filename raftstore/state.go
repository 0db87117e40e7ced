package raftstore

import (
	"strings"
	"sync"
	"time"

	"github.com/google/btree"
	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

const (
	// historyEvents: minutes of a busy cluster, so that a watcher that lost its
	// connection resumes instead of listing again.
	historyEvents = 10_000
	// historyBytes bounds the old values kept alive for that, because a peer has 128 MB in all.
	historyBytes = 16 << 20
	// expiryDegree is the usual one for a btree in memory.
	expiryDegree = 16
)

type tree = iradix.Tree[*KV]

// state is the state machine, apart from Raft. apply is deterministic: it knows
// no clock, no randomness and no map order. All methods may be called concurrently.
type state struct {
	mu       sync.RWMutex
	tree     *tree
	revision int64
	hist     history
	expiry   *btree.BTreeG[*KV] // KVs with Expires, the soonest first
	watchers watchIndex
	closed   bool

	// expiryChanged has a token after the soonest expiry may have come nearer.
	expiryChanged chan struct{}
}

func newState(events, bytes int) *state {
	return &state{
		tree:     iradix.New[*KV](),
		revision: 1,
		hist:     history{maxEvents: events, maxBytes: bytes},
		expiry:   newExpiry(),
		watchers: watchIndex{byPrefix: map[string]map[*Watcher]struct{}{}, lengths: map[int]int{}},

		expiryChanged: make(chan struct{}, 1),
	}
}

func newExpiry() *btree.BTreeG[*KV] {
	return btree.NewG(expiryDegree, func(a, b *KV) bool {
		if a.Expires != b.Expires {
			return a.Expires < b.Expires
		}
		return a.Key < b.Key
	})
}

// apply applies stamped transactions one after the other and returns the result of each.
func (s *state) apply(batch [][]op) []Result {
	results := make([]Result, len(batch))
	s.mu.Lock()
	defer s.mu.Unlock()
	tx := s.tree.Txn()
	for i, ops := range batch {
		results[i] = s.applyOne(tx, ops)
	}
	s.tree = tx.CommitOnly()
	s.hist.trim()
	return results
}

func (s *state) applyOne(tx *iradix.Txn[*KV], ops []op) Result {
	res := Result{Revision: s.revision, Applied: true, Current: make([]*KV, len(ops))}
	writes := false
	for i, o := range ops {
		kv, _ := tx.Get(bytesOf(o.key))
		res.Current[i] = kv
		var mod int64
		if kv != nil {
			mod = kv.ModRevision
		}
		if o.cond != Any && o.cond != mod {
			res.Applied = false
		}
		writes = writes || o.kind == Put || o.kind == Delete && kv != nil
	}
	if !res.Applied || !writes {
		return res
	}
	s.revision++
	res.Revision = s.revision
	for _, o := range ops {
		switch o.kind {
		case Put:
			s.put(tx, o)
		case Delete:
			s.delete(tx, o.key)
		}
	}
	return res
}

func (s *state) put(tx *iradix.Txn[*KV], o op) {
	kv := &KV{CreateRevision: s.revision, ModRevision: s.revision, Expires: o.life}
	// A copy of its own size: the value must not keep a whole log entry alive.
	kv.Value = append(make([]byte, 0, len(o.value)), o.value...)
	prev, _ := tx.Get(bytesOf(o.key))
	if prev != nil {
		kv.Key, kv.CreateRevision = prev.Key, prev.CreateRevision
		s.unexpire(prev)
	} else {
		kv.Key = strings.Clone(o.key)
	}
	tx.Insert(bytesOf(kv.Key), kv)
	if kv.Expires != 0 {
		s.expire(kv)
	}
	s.record(Event{Revision: s.revision, Key: kv.Key, KV: kv, Prev: prev})
}

func (s *state) delete(tx *iradix.Txn[*KV], key string) {
	prev, ok := tx.Delete(bytesOf(key))
	if !ok {
		return
	}
	s.unexpire(prev)
	s.record(Event{Revision: s.revision, Key: prev.Key, Prev: prev})
}

func (s *state) record(e Event) {
	seq := s.hist.append(e)
	s.watchers.wake(e.Key, seq)
}

func (s *state) expire(kv *KV) {
	soonest, had := s.expiry.Min()
	s.expiry.ReplaceOrInsert(kv)
	if !had || kv.Expires < soonest.Expires {
		select {
		case s.expiryChanged <- struct{}{}:
		default:
		}
	}
}

func (s *state) unexpire(kv *KV) {
	if kv.Expires != 0 {
		s.expiry.Delete(kv)
	}
}

// expired returns up to limit keys whose time has come, the longest overdue first.
func (s *state) expired(now time.Time, limit int) []*KV {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var kvs []*KV
	s.expiry.Ascend(func(kv *KV) bool {
		if kv.Expires > now.Unix() || len(kvs) == limit {
			return false
		}
		kvs = append(kvs, kv)
		return true
	})
	return kvs
}

// nextExpiry is the time at which the next key expires; false if none ever does.
func (s *state) nextExpiry() (time.Time, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	kv, ok := s.expiry.Min()
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(kv.Expires, 0), true
}

// replace puts another state, read from a snapshot, in the place of this one.
// Nobody can be told what changed, so every watcher is cut off.
func (s *state) replace(t *tree, revision int64) {
	expiry := newExpiry()
	t.Root().Walk(func(_ []byte, kv *KV) bool {
		if kv.Expires != 0 {
			expiry.ReplaceOrInsert(kv)
		}
		return false
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers.cutOff(s.revision)
	s.tree, s.revision, s.expiry = t, revision, expiry
	s.hist.reset(revision)
	select {
	case s.expiryChanged <- struct{}{}:
	default:
	}
}

// view returns the newest state, immutable.
func (s *state) view() (*tree, int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree, s.revision
}

// close ends every watch. The state stays readable.
func (s *state) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.watchers.wakeAll()
}
