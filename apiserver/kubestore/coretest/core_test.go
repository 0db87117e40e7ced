package coretest

import (
	"context"
	"reflect"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/core"

	"github.com/rundigitalplatform/rookery/apiserver/kubestore"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func everything() storage.ListOptions {
	return storage.ListOptions{Predicate: storage.Everything, Recursive: true}
}

// TestEncodingLeavesSharedObjectsAlone: lists and watches are converted and encoded
// in parallel, as the API's handlers do; the objects they share stay as they were.
func TestEncodingLeavesSharedObjectsAlone(t *testing.T) {
	store := raftstore.NewMemory()
	configMaps, pods := openConfigMaps(t, store, false), openPods(t, store, false)
	fill(t, configMaps, pods, 10, 20)
	before := &core.PodList{}
	if err := pods.GetList(context.Background(), "/registry/core/pods/", everything(), before); err != nil {
		t.Fatal(err)
	}
	want := before.DeepCopy()

	_, scheme := newCodec(t)
	codecs := serializer.NewCodecFactory(scheme)
	var wg sync.WaitGroup
	for _, info := range codecs.SupportedMediaTypes() {
		encoder := codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion)
		wg.Go(func() { encodeList(t, pods, encoder) })
		wg.Go(func() { encodeWatch(t, pods, encoder, len(want.Items)) })
	}
	wg.Wait()
	if !reflect.DeepEqual(want.Items, before.Items) {
		t.Error("encoding changed objects that are shared")
	}
}

func encodeList(t *testing.T, s *kubestore.Storage, encoder runtime.Encoder) {
	list := &core.PodList{}
	if err := s.GetList(context.Background(), "/registry/core/pods/", everything(), list); err != nil {
		t.Error(err)
		return
	}
	if _, err := runtime.Encode(encoder, list); err != nil {
		t.Error(err)
	}
}

func encodeWatch(t *testing.T, s *kubestore.Storage, encoder runtime.Encoder, n int) {
	w, err := s.Watch(context.Background(), "/registry/core/pods/", everything())
	if err != nil {
		t.Error(err)
		return
	}
	defer w.Stop()
	for range n {
		e := <-w.ResultChan()
		if e.Type != watch.Added {
			t.Errorf("got %s", e.Type)
			return
		}
		if _, err := runtime.Encode(encoder, e.Object); err != nil {
			t.Error(err)
		}
	}
}

func liveHeap() float64 {
	goruntime.GC()
	goruntime.GC()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkHeap tells what 2,000 ConfigMaps of 512 bytes and 500 pods cost as
// bytes, and what remembering their objects adds.
func BenchmarkHeap(b *testing.B) {
	for b.Loop() {
		store := raftstore.NewMemory()
		configMaps, pods := openConfigMaps(b, store, false), openPods(b, store, false)
		empty := liveHeap()
		fill(b, configMaps, pods, 2000, 0)
		cmBytes := liveHeap()
		fill(b, configMaps, pods, 0, 500)
		podBytes := liveHeap()
		if err := configMaps.GetList(b.Context(), "/registry/core/configmaps/", everything(), &core.ConfigMapList{}); err != nil {
			b.Fatal(err)
		}
		cmObjects := liveHeap()
		if err := pods.GetList(b.Context(), "/registry/core/pods/", everything(), &core.PodList{}); err != nil {
			b.Fatal(err)
		}
		podObjects := liveHeap()
		const mb = 1 << 20
		b.ReportMetric((cmBytes-empty)/mb, "MB-configmaps")
		b.ReportMetric((podBytes-cmBytes)/mb, "MB-pods")
		b.ReportMetric((cmObjects-podBytes)/mb, "MB-configmaps-decoded")
		b.ReportMetric((podObjects-cmObjects)/mb, "MB-pods-decoded")
		goruntime.KeepAlive(store)
	}
}

// parallel16 runs f from 16 goroutines, as the yardstick of the API does.
func parallel16(b *testing.B, f func(i int) error) {
	b.SetParallelism(max(1, 16/goruntime.GOMAXPROCS(0)))
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := f(int(next.Add(1))); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

func BenchmarkCreate(b *testing.B) {
	s := openConfigMaps(b, raftstore.NewMemory(), false)
	parallel16(b, func(i int) error {
		return s.Create(b.Context(), configMapKey(i), configMap(i), &core.ConfigMap{}, 0)
	})
}

func benchmarkGet(b *testing.B, remembered bool) {
	store := raftstore.NewMemory()
	s := openConfigMaps(b, store, false)
	fill(b, s, nil, 2000, 0)
	if remembered {
		if err := s.GetList(b.Context(), "/registry/core/configmaps/", everything(), &core.ConfigMapList{}); err != nil {
			b.Fatal(err)
		}
	}
	parallel16(b, func(i int) error {
		return s.Get(b.Context(), configMapKey(i%2000), storage.GetOptions{}, &core.ConfigMap{})
	})
}

func BenchmarkGet(b *testing.B) {
	b.Run("copied", func(b *testing.B) { benchmarkGet(b, true) })
	b.Run("decoded", func(b *testing.B) { benchmarkGet(b, false) })
}

func BenchmarkGetUpdate(b *testing.B) {
	s := openConfigMaps(b, raftstore.NewMemory(), false)
	fill(b, s, nil, 2000, 0)
	var n atomic.Int64
	parallel16(b, func(i int) error {
		key := configMapKey(i % 2000)
		if err := s.Get(b.Context(), key, storage.GetOptions{}, &core.ConfigMap{}); err != nil {
			return err
		}
		return s.GuaranteedUpdate(b.Context(), key, &core.ConfigMap{}, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
			o.(*core.ConfigMap).Generation = n.Add(1)
			return o, nil
		}), nil)
	})
}

// BenchmarkList lists 2,000 ConfigMaps: sharing their objects, giving each
// caller copies of its own, and decoding each time.
func BenchmarkList(b *testing.B) {
	for _, mode := range []string{"shared", "copied", "decoded"} {
		b.Run("configmaps/"+mode, func(b *testing.B) {
			s := openConfigMaps(b, raftstore.NewMemory(), mode == "decoded")
			fill(b, s, nil, 2000, 0)
			parallel16(b, func(int) error {
				list := &core.ConfigMapList{}
				err := s.GetList(b.Context(), "/registry/core/configmaps/", everything(), list)
				if mode == "copied" {
					list = list.DeepCopy()
				}
				goruntime.KeepAlive(list)
				return err
			})
		})
		b.Run("pods/"+mode, func(b *testing.B) {
			s := openPods(b, raftstore.NewMemory(), mode == "decoded")
			fill(b, nil, s, 0, 500)
			parallel16(b, func(int) error {
				list := &core.PodList{}
				err := s.GetList(b.Context(), "/registry/core/pods/", everything(), list)
				if mode == "copied" {
					list = list.DeepCopy()
				}
				goruntime.KeepAlive(list)
				return err
			})
		})
	}
}
