package kubestore

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
)

// countingCodec counts how often it decodes.
type countingCodec struct {
	runtime.Codec
	decodes atomic.Int64
}

func (c *countingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	c.decodes.Add(1)
	return c.Codec.Decode(data, defaults, into)
}

func receive(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case e := <-w.ResultChan():
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return watch.Event{}
	}
}

// TestWatchersShareDecoding: however many watchers, a change is decoded once, and
// each may decorate what it gets.
func TestWatchersShareDecoding(t *testing.T) {
	h := newHarness(t, openMemory, false)
	rv := h.create(t, "a").ResourceVersion
	const watchers = 20
	all := make([]watch.Interface, watchers)
	for i := range all {
		w, err := h.Watch(h.ctx, "/pods/", storage.ListOptions{ResourceVersion: rv, Predicate: storage.Everything, Recursive: true})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = w
	}
	codec := &countingCodec{Codec: h.Storage.codec}
	h.Storage.codec = codec
	if err := h.label("b"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, w := range all {
		wg.Go(func() {
			pod := receive(t, w).Object.(*example.Pod)
			// As a decorator does.
			pod.Spec.NodeName, pod.Labels = fmt.Sprint(i), map[string]string{"mine": fmt.Sprint(i)}
		})
	}
	wg.Wait()
	// The update decodes what it starts from and its own result.
	if n := codec.decodes.Load(); n != 3 {
		t.Errorf("%d decodes, want 3", n)
	}
	list := &example.PodList{}
	if err := h.GetList(h.ctx, "/pods/", storage.ListOptions{Predicate: storage.Everything, Recursive: true}, list); err != nil {
		t.Fatal(err)
	}
	if pod := list.Items[0]; pod.Spec.NodeName != "" || pod.Labels["app"] != "b" {
		t.Errorf("a watcher changed the stored object: %+v", pod)
	}
	if n := codec.decodes.Load(); n != 3 {
		t.Errorf("the list decoded again: %d", n)
	}
}

// TestObjectsOfTheirOwn: what Get and the update function get may be changed in depth.
func TestObjectsOfTheirOwn(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.create(t, "a")
	opts := storage.ListOptions{Predicate: storage.Everything, Recursive: true}
	list := &example.PodList{}
	if err := h.GetList(h.ctx, "/pods/", opts, list); err != nil {
		t.Fatal(err)
	}
	pod := &example.Pod{}
	if err := h.Get(h.ctx, podKey, storage.GetOptions{}, pod); err != nil {
		t.Fatal(err)
	}
	pod.Labels["app"] = "changed"
	failed := fmt.Errorf("no")
	err := h.GuaranteedUpdate(h.ctx, podKey, &example.Pod{}, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
		o.(*example.Pod).Labels["app"] = "changed"
		return nil, failed
	}), nil)
	if err != failed {
		t.Fatal(err)
	}
	if got := list.Items[0].Labels["app"]; got != "a" {
		t.Errorf("the listed object was changed to %q", got)
	}
}

// TestSupersededObjectsAreForgotten: the history does not keep decoded objects alive.
func TestSupersededObjectsAreForgotten(t *testing.T) {
	h := newHarness(t, openMemory, false)
	rv := h.create(t, "a").ResourceVersion
	w, err := h.Watch(h.ctx, "/pods/", storage.ListOptions{ResourceVersion: rv, Predicate: storage.Everything, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	raw, err := h.store.Store.Watch("/pods/", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	const updates = 3 * keepSuperseded
	for i := range updates {
		if err := h.label(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		receive(t, w)
	}
	held, seen := 0, 0
	for seen <= updates {
		events, err := raw.Next(h.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			seen++
			if h.peek(e.KV) != nil {
				held++
			}
		}
	}
	if held == 0 || held > keepSuperseded+2 {
		t.Errorf("%d of %d values are decoded, want a few and at most %d", held, seen, keepSuperseded+2)
	}
}

// TestProgressOnRequest: a bookmark comes when asked for, with the newest revision.
func TestProgressOnRequest(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.Storage.bookmarks = time.Hour
	rv := h.create(t, "a").ResourceVersion
	pred := storage.Everything
	pred.AllowWatchBookmarks = true
	w, err := h.Watch(h.ctx, podKey, storage.ListOptions{ResourceVersion: rv, Predicate: pred})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	want := fmt.Sprint(h.increaseRV(h.ctx, t))
	if err := h.RequestWatchProgress(h.ctx); err != nil {
		t.Fatal(err)
	}
	e := receive(t, w)
	if e.Type != watch.Bookmark || e.Object.(*example.Pod).ResourceVersion != want {
		t.Errorf("got %s %+v, want a bookmark at %s", e.Type, e.Object, want)
	}
}

// TestWatchFromTheFuture: a watch from a revision that this peer does not have yet
// delivers what comes after that revision and nothing before.
func TestWatchFromTheFuture(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.create(t, "a") // revision 2
	w, err := h.Watch(h.ctx, "/pods/", storage.ListOptions{ResourceVersion: "4", Predicate: storage.Everything, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, name := range []string{"b", "c", "d"} {
		h.create(t, name)
	}
	if e := receive(t, w); e.Object.(*example.Pod).Name != "d" {
		t.Errorf("got %+v", e)
	}
}

func TestConfigIsChecked(t *testing.T) {
	h := newHarness(t, openMemory, false)
	good := Config{Codec: h.codec, NewFunc: func() runtime.Object { return &example.Pod{} }, NewListFunc: func() runtime.Object { return &example.PodList{} }}
	for _, prefix := range []string{"", "/", "pods"} {
		cfg := good
		cfg.ResourcePrefix = prefix
		if _, err := New(h.store, cfg); err == nil {
			t.Errorf("prefix %q was accepted", prefix)
		}
	}
	if _, err := New(h.store, Config{ResourcePrefix: "/pods"}); err == nil {
		t.Error("a storage without a codec was accepted")
	}
}

// relabelling decodes pods with a label of its own, as a version of a custom resource would.
type relabelling struct {
	runtime.Codec
	label string
}

func (c relabelling) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, gvk, err := c.Codec.Decode(data, defaults, into)
	if pod, ok := obj.(*example.Pod); ok {
		pod.Labels = map[string]string{"decoded": c.label}
	}
	return obj, gvk, err
}

// TestStoragesOfOnePrefix: two storages that decode the same bytes to different objects of
// one Go type do not see each other's.
func TestStoragesOfOnePrefix(t *testing.T) {
	h := newHarness(t, openMemory, false)
	h.create(t, "a")
	kvs, err := h.store.List("/pods/", "", 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	storages := map[string]*Storage{}
	for _, label := range []string{"v1", "v2"} {
		s, err := New(h.store, Config{
			Codec: relabelling{h.Storage.codec, label}, NewFunc: h.Storage.newFunc, NewListFunc: func() runtime.Object { return &example.PodList{} },
			ResourcePrefix: "/pods/", GroupResource: h.Storage.gr,
		})
		if err != nil {
			t.Fatal(err)
		}
		storages[label] = s
	}
	for _, label := range []string{"v1", "v2", "v1", "v1", "v2"} {
		list := &example.PodList{}
		if err := storages[label].GetList(h.ctx, "/pods/", storage.ListOptions{Predicate: storage.Everything, Recursive: true}, list); err != nil {
			t.Fatal(err)
		}
		if got := list.Items[0].Labels["decoded"]; got != label {
			t.Errorf("%s lists what %s decoded", label, got)
		}
		pod := &example.Pod{}
		if err := storages[label].Get(h.ctx, kvs.KVs[0].Key, storage.GetOptions{}, pod); err != nil || pod.Labels["decoded"] != label {
			t.Errorf("%s gets what %s decoded, %v", label, pod.Labels["decoded"], err)
		}
	}
}

// TestCloseEndsWatches, those that run and those that come after.
func TestCloseEndsWatches(t *testing.T) {
	h := newHarness(t, openMemory, false)
	open := func() watch.Interface {
		w, err := h.Watch(h.ctx, "/pods/", storage.ListOptions{ResourceVersion: "1", Predicate: storage.Everything, Recursive: true})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	before := open()
	h.Close()
	for _, w := range []watch.Interface{before, open()} {
		select {
		case e, ok := <-w.ResultChan():
			if ok {
				t.Errorf("event %v", e.Type)
			}
		case <-time.After(10 * time.Second):
			t.Error("a watch outlives its storage")
		}
	}
}
