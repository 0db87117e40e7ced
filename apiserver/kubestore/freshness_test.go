package kubestore

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/warning"

	"github.com/rundigitalplatform/rookery/raftstore"
)

const podKey = "/pods/ns/a"

func newPod(name string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "1", Labels: map[string]string{"app": "a"}}}
}

func (h *harness) create(t testing.TB, name string) *example.Pod {
	t.Helper()
	out := &example.Pod{}
	if err := h.Create(h.ctx, "/pods/ns/"+name, newPod(name), out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *harness) label(value string) error {
	return h.GuaranteedUpdate(h.ctx, podKey, &example.Pod{}, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
		o.(*example.Pod).Labels["app"] = value
		return o, nil
	}), nil)
}

type warnings []string

func (w *warnings) AddWarning(agent, text string) { *w = append(*w, agent+": "+text) }

// TestReadsSync: which reads ask the leader, and which do not.
func TestReadsSync(t *testing.T) {
	h := newHarness(t, openMemory, false)
	rv := h.create(t, "a").ResourceVersion
	list := func(opts storage.ListOptions) error {
		opts.Predicate, opts.Recursive = storage.Everything, true
		return h.GetList(h.ctx, "/pods/", opts, &example.PodList{})
	}
	get := func(rv string) error {
		return h.Get(h.ctx, podKey, storage.GetOptions{ResourceVersion: rv}, &example.Pod{})
	}
	for name, test := range map[string]struct {
		read  func() error
		syncs int64
	}{
		"get":         {func() error { return get("") }, 1},
		"get, local":  {func() error { return get("0") }, 0},
		"get, there":  {func() error { return get(rv) }, 0},
		"list":        {func() error { return list(storage.ListOptions{}) }, 1},
		"list, local": {func() error { return list(storage.ListOptions{ResourceVersion: "0"}) }, 0},
		"list, exact": {func() error {
			return list(storage.ListOptions{ResourceVersion: rv, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
		}, 0},
		"watch, local":   {func() error { return h.watchOnce(rv) }, 0},
		"watch, default": {func() error { return h.watchOnce("") }, 1},
	} {
		h.store.syncs.Store(0)
		if err := test.read(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := h.store.syncs.Load(); n != test.syncs {
			t.Errorf("%s asked the leader %d times, want %d", name, n, test.syncs)
		}
	}
	if err := get("1000"); !storage.IsTooLargeResourceVersion(err) {
		t.Errorf("get of a revision to come: %v", err)
	}
}

func (h *harness) watchOnce(rv string) error {
	w, err := h.Watch(h.ctx, "/pods/", storage.ListOptions{ResourceVersion: rv, Predicate: storage.Everything, Recursive: true})
	if err == nil {
		w.Stop()
	}
	return err
}

// TestWriteIsOneTrip: a follower pays one trip to the leader for each write.
func TestWriteIsOneTrip(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.create(t, "a")
	if err := h.label("b"); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(h.ctx, podKey, &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if txns, syncs := h.store.txns.Load(), h.store.syncs.Load(); txns != 3 || syncs != 0 {
		t.Errorf("three writes took %d transactions and %d syncs, want 3 and 0", txns, syncs)
	}
}

func TestWithoutQuorum(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.create(t, "a")
	var noQuorum error = &raftstore.NoQuorumError{Missing: []string{"p2", "p3"}, Voters: 3}
	h.store.syncErr.Store(&noQuorum)
	down := &unwritable{testStore: h.store, err: noQuorum}
	h.Storage.store = down

	var said warnings
	ctx := warning.WithWarningRecorder(h.ctx, &said)
	if err := h.Get(ctx, podKey, storage.GetOptions{}, &example.Pod{}); err != nil {
		t.Errorf("get: %v", err)
	}
	list := &example.PodList{}
	if err := h.GetList(ctx, "/pods/", storage.ListOptions{Predicate: storage.Everything, Recursive: true}, list); err != nil || len(list.Items) != 1 {
		t.Errorf("list: %v, %d items", err, len(list.Items))
	}
	if len(said) != 2 || !strings.HasPrefix(said[0], "rookery: answered from this peer's last known state: no quorum: 2 of 3 voters") {
		t.Errorf("warnings: %q", said)
	}

	refused := func(what string, err error, code int32, text string) {
		t.Helper()
		status, ok := err.(apierrors.APIStatus)
		if !ok || status.Status().Code != code || !strings.Contains(status.Status().Message, text) {
			t.Errorf("%s: %v, want %d with %q", what, err, code, text)
		}
	}
	refused("create", h.Create(ctx, "/pods/ns/b", newPod("b"), nil, 0), http.StatusServiceUnavailable, "p2, p3")
	refused("update", h.label("b"), http.StatusServiceUnavailable, "p2, p3")
	refused("no-op update", h.label("a"), http.StatusServiceUnavailable, "p2, p3")
	refused("delete", h.Delete(ctx, podKey, &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}), http.StatusServiceUnavailable, "p2, p3")

	down.err = fmt.Errorf("propose: %w", raftstore.ErrTooLarge)
	refused("too large", h.label("b"), http.StatusRequestEntityTooLarge, "4 MiB")
	down.err = raftstore.ErrClosed
	refused("closed", h.label("b"), http.StatusServiceUnavailable, "shutting down")
	down.err = context.DeadlineExceeded
	refused("deadline", h.label("b"), http.StatusGatewayTimeout, "may or may not")
}

type unwritable struct {
	*testStore
	err error
}

func (u *unwritable) Txn(context.Context, raftstore.Txn) (raftstore.Result, error) {
	return raftstore.Result{}, u.err
}

// behind is a follower that has not seen the newest writes to one key until it syncs.
type behind struct {
	*testStore
	stale *raftstore.KV
	lag   bool
}

func (b *behind) Get(key string) (*raftstore.KV, int64) {
	if b.lag {
		return b.stale, 1
	}
	return b.testStore.Get(key)
}

func (b *behind) Sync(ctx context.Context) error {
	b.lag = false
	return b.testStore.Sync(ctx)
}

// TestStaleReads: what a stale read makes a write refuse is confirmed first.
func TestStaleReads(t *testing.T) {
	uid := func(s string) *storage.Preconditions { return storage.NewUIDPreconditions(s) }
	update := func(h *harness, p *storage.Preconditions, value string) error {
		return h.GuaranteedUpdate(h.ctx, podKey, &example.Pod{}, false, p, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
			o.(*example.Pod).Labels = map[string]string{"app": value}
			return o, nil
		}), nil)
	}
	for name, test := range map[string]struct {
		absent bool // the follower does not know the key at all yet
		write  func(h *harness) error
		ok     func(error) bool
		label  string // afterwards, "" if the pod is gone
	}{
		"update of an unknown pod": {true, func(h *harness) error { return update(h, nil, "c") }, isNil, "c"},
		"delete of an unknown pod": {true, func(h *harness) error {
			return h.Delete(h.ctx, podKey, &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
		}, isNil, ""},
		"update that looks like none": {false, func(h *harness) error { return update(h, nil, "a") }, isNil, "a"},
		"update of an old value":      {false, func(h *harness) error { return update(h, nil, "c") }, isNil, "c"},
		"precondition on the new one": {false, func(h *harness) error { return update(h, uid("2"), "c") }, isNil, "c"},
		"precondition on the old one": {false, func(h *harness) error { return update(h, uid("1"), "c") }, storage.IsInvalidObj, "b"},
		"validation of the new one": {false, func(h *harness) error {
			return h.Delete(h.ctx, podKey, &example.Pod{}, nil, func(_ context.Context, o runtime.Object) error {
				if o.(*example.Pod).UID != "2" {
					return fmt.Errorf("too old")
				}
				return nil
			}, nil, storage.DeleteOptions{})
		}, isNil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, openMemory, false)
			h.create(t, "a")
			stale, _ := h.store.Get(podKey)
			if err := h.GuaranteedUpdate(h.ctx, podKey, &example.Pod{}, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
				o.(*example.Pod).UID, o.(*example.Pod).Labels["app"] = "2", "b"
				return o, nil
			}), nil); err != nil {
				t.Fatal(err)
			}
			follower := &behind{testStore: h.store, stale: stale, lag: true}
			if test.absent {
				follower.stale = nil
			}
			h.Storage.store = follower
			if err := test.write(h); !test.ok(err) {
				t.Fatalf("got %v", err)
			}
			follower.lag = false
			pod := &example.Pod{}
			if err := h.Get(h.ctx, podKey, storage.GetOptions{IgnoreNotFound: true}, pod); err != nil {
				t.Fatal(err)
			}
			if pod.Labels["app"] != test.label {
				t.Errorf("label is %q, want %q", pod.Labels["app"], test.label)
			}
		})
	}
}

func isNil(err error) bool { return err == nil }
