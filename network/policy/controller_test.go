package policy

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/client-go/informers"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// rules takes those of IPv4 only.
type rules struct {
	local   map[string][]netip.Addr
	applied map[knftables.Family]nft.State
}

var errFamily = errors.New("no such family")

func (r rules) Apply(_ context.Context, family knftables.Family, _ string, state nft.State) error {
	if family != knftables.IPv4Family {
		return errFamily
	}
	r.applied[family] = state
	return nil
}

func (r rules) Addresses() map[string][]netip.Addr { return r.local }

// One family's rules are not kept back by the other, and no pod is let in before both are there.
func TestOneFamilyFails(t *testing.T) {
	nfttest.Namespace(t)
	o := world(t, "{podSelector: {}, ingress: []}")
	inf := informers.NewSharedInformerFactory(nil, 0) // never started: the objects are put there
	policies, pods, namespaces := inf.Networking().V1().NetworkPolicies(), inf.Core().V1().Pods(), inf.Core().V1().Namespaces()
	network := rules{local: o.local, applied: map[knftables.Family]nft.State{}}
	c := New(Config{Policies: policies, Pods: pods, Namespaces: namespaces, Network: network, Section: "policies", Families: []Self{self6, self}, Log: slog.New(slog.DiscardHandler)})
	for _, p := range o.policies {
		if err := policies.Informer().GetIndexer().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range o.pods {
		if err := pods.Informer().GetIndexer().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range o.namespaces {
		if err := namespaces.Informer().GetIndexer().Add(n); err != nil {
			t.Fatal(err)
		}
	}
	c.wanted = 1
	if err := c.sync(t.Context()); !errors.Is(err, errFamily) {
		t.Errorf("the failure is not told: %v", err)
	}
	if _, ok := network.applied[knftables.IPv4Family].Chains["policy-ingress-10.42.1.2"]; !ok {
		t.Errorf("the pod is not isolated: %v", slices.Sorted(maps.Keys(network.applied[knftables.IPv4Family].Chains)))
	}
	if c.applied != 0 {
		t.Error("a pod that waits was let in")
	}
}
