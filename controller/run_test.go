package controller

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

func testFactory(t *testing.T) (informers.SharedInformerFactory, func(), *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset()
	f := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); f.Shutdown() })
	return f, func() { f.Start(ctx.Done()) }, client
}

// rival is an informer to which another controller adds the same index a moment earlier.
type rival struct{ cache.SharedIndexInformer }

func (r rival) AddIndexers(indexers cache.Indexers) error {
	return errors.Join(r.SharedIndexInformer.AddIndexers(indexers), r.SharedIndexInformer.AddIndexers(indexers))
}

func TestTermsAddTheSameIndexAtOnce(t *testing.T) {
	f, start, _ := testFactory(t)
	pods := &termInformer{rival{f.Core().V1().Pods().Informer()}, NewTerm(f, start)}
	if err := indexPodsByNode(pods); err != nil {
		t.Error(err)
	}
	if _, err := podsOn(pods.GetIndexer(), "h1"); err != nil {
		t.Error(err)
	}
}

func TestTermTakesItsHandlersWithIt(t *testing.T) {
	f, start, client := testFactory(t)
	var first, second atomic.Int32
	count := func(n *atomic.Int32) cache.ResourceEventHandler {
		return cache.ResourceEventHandlerFuncs{AddFunc: func(any) { n.Add(1) }}
	}
	create := func(name string) {
		_, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range []*atomic.Int32{&first, &second} {
		term := NewTerm(f, start)
		pods := term.Core().V1().Pods().Informer()
		// The same index in each term, as the stock controllers add it.
		if err := pods.AddIndexers(cache.Indexers{"x": func(any) ([]string, error) { return nil, nil }}); err != nil {
			t.Fatalf("term %d: %v", i, err)
		}
		if _, err := pods.AddEventHandler(count(n)); err != nil {
			t.Fatal(err)
		}
		generic, err := term.ForResource(corev1.SchemeGroupVersion.WithResource("pods"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := generic.Informer().AddEventHandlerWithResyncPeriod(count(n), 0); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			// The informer runs and has a pod by now, which the handlers may not hear of yet.
			if handle, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{}); err != nil || handle.HasSynced() || n.Load() != 0 {
				t.Errorf("before Start: %v, %d events", err, n.Load())
			}
		}
		term.Start(nil)
		if !cache.WaitForCacheSync(t.Context().Done(), pods.HasSynced) {
			t.Fatal("not synced")
		}
		create([]string{"one", "two"}[i])
		poll(t, func() bool { return n.Load() == int32(2*(i+1)) })
		if err := term.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.AddEventHandler(count(n)); err == nil {
			t.Error("a handler was added after the term")
		}
	}
	if first.Load() != 2 {
		t.Errorf("the first term's handlers heard %d events, want 2: they were not removed", first.Load())
	}
}

func TestAFailedControllerIsStartedAgain(t *testing.T) {
	f, start, _ := testFactory(t)
	ctx, cancel := context.WithCancel(t.Context())
	var lives, steady atomic.Int32
	cfg := Config{
		ClientConfig: func(user string, _ ...string) *rest.Config {
			if user != "system:serviceaccount:kube-system:x-controller" {
				t.Errorf("user %q", user)
			}
			return &rest.Config{}
		},
		Informers: f, StartInformers: start, Logger: slog.New(slog.DiscardHandler),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = runAll(ctx, cfg, []controller{
			{name: "broken", user: "x-controller", run: func(ctx context.Context, e *env) error {
				switch lives.Add(1) {
				case 1:
					panic("boom")
				case 2:
					return errors.New("failed")
				}
				<-ctx.Done()
				return nil
			}},
			{name: "steady", user: "x-controller", run: func(ctx context.Context, e *env) error { steady.Add(1); <-ctx.Done(); return nil }},
		})
	}()
	poll(t, func() bool { return lives.Load() == 3 })
	cancel()
	<-done
	if steady.Load() != 1 {
		t.Errorf("the other controller had %d lives, want 1", steady.Load())
	}
}

func TestAPISlices(t *testing.T) {
	at := func(list ...string) (all []netip.AddrPort) {
		for _, s := range list {
			all = append(all, netip.MustParseAddrPort(s))
		}
		return all
	}
	got := apiSlices(map[string]Member{
		"b": {Liveness: Alive, Addresses: at("192.0.2.2:6443", "[2001:db8::2]:6443")},
		"a": {Liveness: Alive, Addresses: at("192.0.2.1:6443"), Witness: true},
		"c": {Liveness: Dead, Addresses: at("192.0.2.3:6443")},
		"d": {Liveness: Alive},
		"e": {Liveness: Alive, Addresses: at("[2001:db8::5]:6443")},
	})
	if len(got) != 2 || len(got[0].Endpoints) != 2 || got[0].Endpoints[0].Addresses[0] != "192.0.2.1" || got[0].Endpoints[0].NodeName != nil ||
		*got[0].Endpoints[1].NodeName != "b" || *got[0].Ports[0].Port != 6443 || got[0].Name != "kubernetes" ||
		got[1].Name != "kubernetes-ipv6" || got[1].AddressType != discoveryv1.AddressTypeIPv6 || len(got[1].Endpoints) != 2 {
		t.Errorf("got %v", got)
	}
	six := apiSlices(map[string]Member{"a": {Liveness: Alive, Addresses: at("[2001:db8::1]:6443", "192.0.2.1:6443")}})
	if len(six) != 2 || six[0].Name != "kubernetes-ipv6" || six[1].Endpoints[0].Addresses[0] != "192.0.2.1" {
		t.Errorf("IPv6 first: %v", six)
	}
	if got := apiSlices(map[string]Member{"a": {Liveness: Dead, Addresses: at("192.0.2.1:6443")}}); len(got) != 0 {
		t.Errorf("nobody alive: %v", got)
	}
}

func poll(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 10 s")
		}
	}
}
