// Package storetest is the conformance suite of [raftstore.Store]: what every
// implementation does, in one place. It is called by the tests of raftstore and
// by those of anything else that implements Store. Faults, partitions and disks
// are not its business.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// patience is how long a test waits for what should happen at once: loaded
// machines are slow, and a failure may take its time.
const patience = time.Minute

// Run runs the suite. open returns an empty store that deletes expired keys,
// and cleans up after t.
func Run(t *testing.T, open func(t *testing.T) raftstore.Store) {
	tests := []struct {
		name string
		run  func(*testing.T, raftstore.Store)
	}{
		{"empty", testEmpty},
		{"conditions", testConditions},
		{"transactions are whole", testWhole},
		{"revisions", testRevisions},
		{"bad transactions", testBad},
		{"values are copied", testCopied},
		{"list pages", testList},
		{"list at a revision", testListAt},
		{"watch", testWatch},
		{"watch a prefix", testWatchPrefix},
		{"watch progress", testProgress},
		{"slow watcher", testSlow},
		{"counter", testCounter},
		{"expiry", testExpiry},
		{"memo", testMemo},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for elections
			tt.run(t, open(t))
		})
	}
}

// Put writes a key without a condition and returns the revision; it fails t otherwise.
func Put(t testing.TB, s raftstore.Store, key, value string) int64 {
	t.Helper()
	return do(t, s, raftstore.Op{Key: key, If: raftstore.Any, Kind: raftstore.Put, Value: []byte(value)}).Revision
}

func do(t testing.TB, s raftstore.Store, ops ...raftstore.Op) raftstore.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := s.Txn(ctx, ops)
	if err != nil {
		t.Fatalf("transaction of %d operations on %q: %v", len(ops), ops[0].Key, err)
	}
	if s.Revision() < res.Revision {
		t.Fatalf("Txn returned revision %d, the store is at %d: a write must be readable when it returns", res.Revision, s.Revision())
	}
	return res
}

func put(key, value string, cond int64) raftstore.Op {
	return raftstore.Op{Key: key, If: cond, Kind: raftstore.Put, Value: []byte(value)}
}

func del(key string, cond int64) raftstore.Op {
	return raftstore.Op{Key: key, If: cond, Kind: raftstore.Delete}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func testEmpty(t *testing.T, s raftstore.Store) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Revision(); got != 1 {
		t.Errorf("revision %d, want 1", got)
	}
	if got := s.CompactRevision(); got != 0 {
		t.Errorf("compact revision %d, want 0", got)
	}
	if kv, rev := s.Get("a"); kv != nil || rev != 1 {
		t.Errorf("Get = %v, %d", kv, rev)
	}
	res, err := s.List("", "", 0, 0)
	if err != nil || len(res.KVs) != 0 || res.Revision != 1 || res.More || res.Total != 0 {
		t.Errorf("List = %+v, %v", res, err)
	}
}

func testConditions(t *testing.T, s raftstore.Store) {
	created := do(t, s, put("k", "1", 0))
	if !created.Applied || created.Current[0] != nil {
		t.Fatalf("create: %+v", created)
	}
	tests := []struct {
		name    string
		op      raftstore.Op
		applied bool
	}{
		{"create what exists", put("k", "x", 0), false},
		{"update at a wrong revision", put("k", "x", created.Revision+7), false},
		{"delete at a wrong revision", del("k", created.Revision+7), false},
		{"check that fails", raftstore.Op{Key: "k", If: 0}, false},
		{"check that holds", raftstore.Op{Key: "k", If: created.Revision}, true},
		{"delete what is absent", del("absent", raftstore.Any), true},
		{"update what is absent", put("absent", "x", created.Revision), false},
	}
	for _, tt := range tests {
		res := do(t, s, tt.op)
		if res.Applied != tt.applied || res.Revision != created.Revision {
			t.Errorf("%s: %+v, want applied %v and revision %d", tt.name, res, tt.applied, created.Revision)
		}
		if tt.op.Key == "k" && (res.Current[0] == nil || string(res.Current[0].Value) != "1") {
			t.Errorf("%s: current is %v, want the key", tt.name, res.Current[0])
		}
	}
	updated := do(t, s, put("k", "2", created.Revision))
	kv, _ := s.Get("k")
	if !updated.Applied || kv.CreateRevision != created.Revision || kv.ModRevision != updated.Revision || string(kv.Value) != "2" {
		t.Errorf("update: %+v, key %+v", updated, kv)
	}
	if res := do(t, s, del("k", updated.Revision)); !res.Applied || res.Revision != updated.Revision+1 {
		t.Errorf("delete: %+v", res)
	}
	if again := do(t, s, put("k", "3", 0)); !again.Applied {
		t.Errorf("create after delete: %+v", again)
	} else if kv, _ := s.Get("k"); kv.CreateRevision != again.Revision {
		t.Errorf("created again at %d, want %d", kv.CreateRevision, again.Revision)
	}
}

func testWhole(t *testing.T, s raftstore.Store) {
	Put(t, s, "guard", "x")
	before := s.Revision()
	res := do(t, s, put("a", "1", 0), put("b", "1", 0), raftstore.Op{Key: "guard", If: 0})
	if res.Applied || s.Revision() != before {
		t.Fatalf("a failed condition wrote: %+v", res)
	}
	if kv, _ := s.Get("a"); kv != nil {
		t.Fatalf("a exists: %+v", kv)
	}
	res = do(t, s, put("a", "1", 0), put("b", "1", 0), del("guard", raftstore.Any))
	if !res.Applied || res.Revision != before+1 {
		t.Fatalf("%+v, want revision %d", res, before+1)
	}
	if len(res.Current) != 3 || res.Current[0] != nil || res.Current[2] == nil {
		t.Errorf("current: %v", res.Current)
	}
	a, _ := s.Get("a")
	b, _ := s.Get("b")
	if a.ModRevision != b.ModRevision || a.ModRevision != res.Revision {
		t.Errorf("one transaction, revisions %d and %d", a.ModRevision, b.ModRevision)
	}
}

func testRevisions(t *testing.T, s raftstore.Store) {
	for i := int64(2); i < 12; i++ {
		if rev := Put(t, s, "k", fmt.Sprint(i)); rev != i {
			t.Fatalf("write %d got revision %d", i, rev)
		}
	}
}

func testBad(t *testing.T, s raftstore.Store) {
	tests := []struct {
		name string
		txn  raftstore.Txn
		is   error
	}{
		{"empty key", raftstore.Txn{put("", "x", 0)}, nil},
		{"unknown kind", raftstore.Txn{{Key: "k", Kind: 9}}, nil},
		{"impossible condition", raftstore.Txn{put("k", "x", -2)}, nil},
		{"written twice", raftstore.Txn{put("k", "x", 0), del("k", 0)}, nil},
		{"negative TTL", raftstore.Txn{{Key: "k", Kind: raftstore.Put, TTL: -1}}, nil},
		{"too large", raftstore.Txn{{Key: "k", Kind: raftstore.Put, Value: make([]byte, raftstore.MaxTxnBytes)}}, raftstore.ErrTooLarge},
	}
	for _, tt := range tests {
		_, err := s.Txn(context.Background(), tt.txn)
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.is)
		}
	}
	if s.Revision() != 1 {
		t.Errorf("revision %d after refused transactions", s.Revision())
	}
	large := raftstore.Op{Key: "k", Kind: raftstore.Put, Value: make([]byte, raftstore.MaxTxnBytes-1)}
	// A slow machine may not get it to all peers before Txn gives up. It is on its way
	// then, and another beside it would only be in its way.
	sent := false
	eventually(t, "the largest transaction is applied", func() bool {
		if !sent {
			_, err := s.Txn(context.Background(), raftstore.Txn{large})
			if sent = err == nil || errors.Is(err, raftstore.ErrUncertain); !sent {
				t.Logf("the largest transaction: %v", err)
			}
		}
		kv, _ := s.Get("k")
		return kv != nil && len(kv.Value) == len(large.Value)
	})
}

func testCopied(t *testing.T, s raftstore.Store) {
	value := []byte("before")
	do(t, s, raftstore.Op{Key: "k", Kind: raftstore.Put, Value: value})
	copy(value, "after!")
	if kv, _ := s.Get("k"); string(kv.Value) != "before" {
		t.Errorf("value is %q: it belongs to the caller", kv.Value)
	}
}

func testMemo(t *testing.T, s raftstore.Store) {
	Put(t, s, "k", "1")
	builds := 0
	build := func(kv *raftstore.KV) (any, error) { builds++; return string(kv.Value), nil }
	for range 3 {
		kv, _ := s.Get("k")
		if v, err := kv.Memo(build); err != nil || v != "1" {
			t.Fatalf("Memo = %v, %v", v, err)
		}
	}
	if builds != 1 {
		t.Errorf("built %d times, want once: the same KV must be handed out", builds)
	}
	Put(t, s, "k", "2")
	kv, _ := s.Get("k")
	if v, _ := kv.Memo(build); v != "2" {
		t.Errorf("after a write: %v", v)
	}
}

func testExpiry(t *testing.T, s raftstore.Store) {
	w, err := s.Watch("", s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	start := time.Now()
	put := raftstore.Op{Kind: raftstore.Put, If: raftstore.Any, TTL: time.Second}
	for _, key := range []string{"gone/a", "gone/b", "kept", "renewed"} {
		put.Key = key
		do(t, s, put)
	}
	Put(t, s, "kept", "for ever")
	do(t, s, raftstore.Op{Key: "renewed", If: raftstore.Any, Kind: raftstore.Put, TTL: time.Hour})
	if kv, _ := s.Get("renewed"); kv.Expires < start.Add(time.Hour).Unix() {
		t.Errorf("expires at %d, started at %d", kv.Expires, start.Unix())
	}
	eventually(t, "expired keys are deleted", func() bool {
		res, err := s.List("gone/", "", 0, 0)
		return err == nil && res.Total == 0
	})
	if took := time.Since(start); took < time.Second {
		t.Errorf("deleted after %s", took)
	}
	deleted := map[string]bool{}
	for len(deleted) < 2 {
		for _, e := range next(t, w) {
			if e.KV == nil {
				deleted[e.Key] = true
			}
		}
	}
	for _, key := range []string{"kept", "renewed"} {
		if kv, _ := s.Get(key); kv == nil {
			t.Errorf("%s is gone", key)
		}
	}
}
