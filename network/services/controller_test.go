package services

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
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
		services.Informer().GetIndexer().Add(svc),
		slices.Informer().GetIndexer().Add(slice(t, corev1.ProtocolTCP, "d/web 8080 10.42.1.2@here 10.42.1.3@here")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.sync(t.Context()); !errors.Is(err, errFamily) {
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
