package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	cachetesting "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// rules takes those of IPv4 only.
type rules struct{}

var errFamily = errors.New("no such family")

func (rules) Apply(_ context.Context, family knftables.Family, _ string, _ nft.State) error {
	if family != knftables.IPv4Family {
		return errFamily
	}
	return nil
}

func (r rules) Patch(ctx context.Context, family knftables.Family, section string, _ nft.Patch) error {
	return r.Apply(ctx, family, section, nft.State{})
}

// What works for one family is not kept back by the other.
func TestOneFamilyFails(t *testing.T) {
	nfttest.Namespace(t)
	inf := informers.NewSharedInformerFactory(nil, 0) // never started: the objects are put there
	const port = 30999
	svc := service(t, "d/web 10.43.0.5 80")
	svc.Spec.Type, svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, port
	services, slices := inf.Core().V1().Services(), inf.Discovery().V1().EndpointSlices()
	c := New(Config{Services: services, Slices: slices, Rules: rules{}, Section: "services", Families: []Self{self6(), self()}, Log: slog.New(slog.DiscardHandler)})
	defer c.health.close()
	for _, err := range []error{
		slices.Informer().AddIndexers(cache.Indexers{byService: serviceOf}),
		services.Informer().GetIndexer().Add(svc),
		slices.Informer().GetIndexer().Add(slice(t, corev1.ProtocolTCP, "d/web 8080 10.42.1.2@here 10.42.1.3@here")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.sync(t.Context(), false); !errors.Is(err, errFamily) {
		t.Errorf("the failure is not told: %v", err)
	}
	p := c.health.open[port]
	if p == nil || p.state.Load().LocalEndpoints != 2 {
		t.Errorf("the health port is not answered: %v", p)
	}
	if c.lastSync.IsZero() {
		t.Error("the next change is not paced")
	}
}

// What the informers tell of is what comes to the rules: also of slices that go to another
// Service, and of nodes of which only Alive tells.
func TestControllerFollows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	svcs, eps := cachetesting.NewFakeControllerSource(), cachetesting.NewFakeControllerSource()
	inf := informers.NewSharedInformerFactory(nil, 0)
	for from, kind := range map[*cachetesting.FakeControllerSource]runtime.Object{svcs: &corev1.Service{}, eps: &discoveryv1.EndpointSlice{}} {
		inf.InformerFor(kind, func(kubernetes.Interface, time.Duration) cache.SharedIndexInformer {
			return cache.NewSharedIndexInformer(from, kind, 0, cache.Indexers{})
		})
	}
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	table := nft.New(fake, slog.New(slog.DiscardHandler))
	var dead atomic.Bool
	lives := func(node string) bool { return node != "b" || !dead.Load() }
	changed := make(chan struct{}, 1)
	c := New(Config{
		Services: inf.Core().V1().Services(), Slices: inf.Discovery().V1().EndpointSlices(), Rules: kernel{table}, Section: "services",
		Families: []Self{self()}, Alive: lives, Changed: changed, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer inf.Shutdown()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	inf.Start(ctx.Done())
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	haveSvcs, haveEps := map[int]*corev1.Service{}, map[int]*discoveryv1.EndpointSlice{}
	for step := range 80 {
		i := r.IntN(4)
		switch svc, of := haveSvcs[i], haveEps[i]; r.IntN(6) {
		case 0:
			if svc != nil {
				svcs.Delete(svc.DeepCopy())
				delete(haveSvcs, i)
			}
		case 1:
			if of != nil {
				eps.Delete(of.DeepCopy())
				delete(haveEps, i)
			}
		case 2:
			dead.Store(!dead.Load())
			notify(changed)
		case 3:
			is := service(t, fmt.Sprintf("d/s%d 10.43.1.%d 80/%d", i, 1+r.IntN(3), 30000+r.IntN(3)))
			if haveSvcs[i] = is; svc == nil {
				svcs.Add(is.DeepCopy())
			} else {
				svcs.Modify(is.DeepCopy())
			}
		default:
			is := slice(t, corev1.ProtocolTCP, fmt.Sprintf("d/s%d 8080 10.42.1.%d@a 10.42.2.%d@b", r.IntN(4), 2+r.IntN(9), 2+r.IntN(9)))
			is.Name = fmt.Sprint("slice", i)
			if haveEps[i] = is; of == nil {
				eps.Add(is.DeepCopy())
			} else {
				eps.Modify(is.DeepCopy())
			}
		}
		var all []*corev1.Service
		var every []*discoveryv1.EndpointSlice
		for i := range 4 {
			if haveSvcs[i] != nil {
				all = append(all, haveSvcs[i])
			}
			if haveEps[i] != nil {
				every = append(every, haveEps[i])
			}
		}
		fresh := knftables.NewFake(knftables.IPv4Family, "rookery")
		if err := nft.New(fresh, slog.New(slog.DiscardHandler)).Set(t.Context(), "services", desired(all, every, nil, lives, self()).rules); err != nil {
			t.Fatal(err)
		}
		want := sorted(fresh.Dump())
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if _, err := table.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if sorted(fake.Dump()) == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("step %d: the rules are:\n%s\nwant:\n%s", step, sorted(fake.Dump()), want)
			}
		}
	}
}
