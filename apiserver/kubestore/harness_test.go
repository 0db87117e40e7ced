package kubestore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// testStore is a store that counts what is asked of it and whose history can be
// compacted at will. It leaves the rest to the store below.
type testStore struct {
	raftstore.Store
	compacted atomic.Int64 // newest revision that cannot be read any more
	reads     atomic.Int64
	syncs     atomic.Int64
	txns      atomic.Int64
	syncErr   atomic.Pointer[error]
}

func (s *testStore) Get(key string) (*raftstore.KV, int64) {
	s.reads.Add(1)
	return s.Store.Get(key)
}

func (s *testStore) List(prefix, start string, at int64, limit int) (raftstore.ListResult, error) {
	s.reads.Add(1)
	if at != 0 && at <= s.compacted.Load() {
		return raftstore.ListResult{}, raftstore.ErrCompacted
	}
	return s.Store.List(prefix, start, at, limit)
}

func (s *testStore) Watch(prefix string, from int64) (*raftstore.Watcher, error) {
	if from <= s.compacted.Load() {
		return nil, raftstore.ErrCompacted
	}
	return s.Store.Watch(prefix, from)
}

func (s *testStore) CompactRevision() int64 {
	return max(s.compacted.Load(), s.Store.CompactRevision())
}

func (s *testStore) Txn(ctx context.Context, txn raftstore.Txn) (raftstore.Result, error) {
	s.txns.Add(1)
	return s.Store.Txn(ctx, txn)
}

func (s *testStore) Sync(ctx context.Context) error {
	s.syncs.Add(1)
	if err := s.syncErr.Load(); err != nil {
		return *err
	}
	return s.Store.Sync(ctx)
}

// failingCodec cannot decode while it is told so.
type failingCodec struct {
	runtime.Codec
	fail atomic.Bool
}

func (c *failingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if c.fail.Load() {
		return nil, nil, errors.New("synthetic error")
	}
	return c.Codec.Decode(data, defaults, into)
}

// failingTransformer cannot read while it is told so.
type failingTransformer struct {
	value.Transformer
	fail atomic.Bool
}

func (t *failingTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if t.fail.Load() {
		return nil, false, errors.New("synthetic error")
	}
	return t.Transformer.TransformFromStorage(ctx, data, dataCtx)
}

const testPrefix = "test!"

// harness is one storage of example pods, and what the suite needs around it.
type harness struct {
	*Storage
	ctx    context.Context
	store  *testStore
	codec  *failingCodec
	prefix *storagetesting.PrefixTransformer // nil if nothing is transformed
}

// newHarness opens a storage over an empty store made by open.
func newHarness(t testing.TB, open func(testing.TB) raftstore.Store, transformed bool) *harness {
	t.Helper()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, add := range []func(*runtime.Scheme) error{example.AddToScheme, examplev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	h := &harness{
		store: &testStore{Store: open(t)},
		codec: &failingCodec{Codec: serializer.NewCodecFactory(scheme).LegacyCodec(examplev1.SchemeGroupVersion)},
	}
	var cancel context.CancelFunc
	h.ctx, cancel = context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var err error
	h.Storage, err = New(h.store, Config{
		Codec:            h.codec,
		NewFunc:          func() runtime.Object { return &example.Pod{} },
		NewListFunc:      func() runtime.Object { return &example.PodList{} },
		ResourcePrefix:   "/pods/",
		GroupResource:    schema.GroupResource{Resource: "pods"},
		BookmarkInterval: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if transformed {
		h.prefix = storagetesting.NewPrefixTransformer([]byte(testPrefix), false)
		// Not marked as corrupt by New: the suite makes its own corrupt errors.
		h.Storage.transformer = h.prefix
	}
	return h
}

// openMemory returns a memory store that runs until the test ends.
func openMemory(t testing.TB) raftstore.Store {
	m := raftstore.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run store: %v", err)
		}
	})
	return m
}

func (h *harness) setTransformer(next value.Transformer) func() {
	before := h.Storage.transformer
	h.Storage.transformer = next
	return func() { h.Storage.transformer = before }
}

// UpdatePrefixTransformer implements storagetesting.InterfaceWithPrefixTransformer.
func (h *harness) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	changed := *h.prefix
	return h.setTransformer(modify(&changed))
}

// UpdateTransformer implements storagetesting.InterfaceWithTransformerOverride.
func (h *harness) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	return h.setTransformer(modify(h.Storage.transformer))
}

// compact makes everything older than resourceVersion unreadable. It takes a revision
// itself, as it does with etcd, where compaction is agreed on by a write.
func (h *harness) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	rev, err := h.Versioner().ParseResourceVersion(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	h.increaseRV(ctx, t)
	h.store.compacted.Store(int64(rev) - 1)
}

func (h *harness) increaseRV(ctx context.Context, t *testing.T) int64 {
	res, err := h.store.Store.Txn(ctx, raftstore.Txn{{Key: "increaseRV", If: raftstore.Any, Kind: raftstore.Put, Value: []byte("ok")}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

// stored checks that neither resource version nor self link of key are stored.
func (h *harness) stored(_ context.Context, t *testing.T, key string) {
	kv, _ := h.store.Get(key)
	if kv == nil {
		t.Fatalf("nothing is stored at %s", key)
	}
	value := string(kv.Value)
	if h.prefix != nil {
		value = strings.TrimPrefix(value, testPrefix)
	}
	obj, err := runtime.Decode(h.codec, []byte(value))
	if err != nil {
		t.Fatalf("decode %q: %v", value, err)
	}
	if pod := obj.(*example.Pod); pod.ResourceVersion != "" || pod.GetSelfLink() != "" {
		t.Errorf("stored object has resource version %q and self link %q", pod.ResourceVersion, pod.GetSelfLink())
	}
}

// pages checks how many objects a list decoded and how often it asked the store:
// pages double until they reach what there is.
func (h *harness) pages(t *testing.T, pageSize, objects uint64) {
	if reads := h.prefix.GetReadsAndReset(); reads != objects {
		t.Errorf("%d objects were decoded, want %d", reads, objects)
	}
	calls := uint64(1)
	if pageSize != 0 {
		for limit, sum := pageSize, uint64(1); sum < objects; calls++ {
			limit = min(limit*2, maxPage)
			sum += limit
		}
	}
	if reads := uint64(h.store.reads.Swap(0)); reads != calls {
		t.Errorf("the store was read %d times, want %d", reads, calls)
	}
}

// allowUnsafeDeletion sets the feature gate for one test.
func allowUnsafeDeletion(t testing.TB, on bool) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.AllowUnsafeMalformedObjectDeletion, on)
}

func bitsFlipped() error {
	return &corruptObjectError{err: errors.New("bits flipped"), kind: untransformable}
}

var _ storage.Interface = (*harness)(nil)
