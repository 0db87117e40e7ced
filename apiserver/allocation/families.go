package allocation

import (
	"net/netip"

	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Families are the allocators of ClusterIPs, one of each IP family that the cluster has.
// The first is of the family that a Service gets which does not ask for one.
type Families []*Addresses

// NewFamilies allocates of ranges, of which there is at least one, each of another IP family. Registry keeps the
// objects in store, under prefix ("/registry").
func NewFamilies(store raftstore.Store, prefix string, registry Registry, ranges []netip.Prefix) Families {
	out := make(Families, 0, len(ranges))
	for _, r := range ranges {
		out = append(out, NewAddresses(store, prefix, registry, r))
	}
	return out
}

// Allocators are those of upstream's registry of Services, by family.
func (f Families) Allocators() map[api.IPFamily]ipallocator.Interface {
	out := map[api.IPFamily]ipallocator.Interface{}
	for _, a := range f {
		out[a.IPFamily()] = a
	}
	return out
}

// For allocates for a Service: the address says whose it is.
func (f Families) For(namespace, name string) Families {
	own := make(Families, 0, len(f))
	for _, a := range f {
		own = append(own, a.For(namespace, name))
	}
	return own
}

// Registry keeps the addresses.
func (f Families) Registry() Registry { return f[0].objects.registry }

// Ranges are written as a ServiceCIDR has them, the first family's first.
func (f Families) Ranges() []string {
	out := make([]string, 0, len(f))
	for _, a := range f {
		out = append(out, a.cidr.String())
	}
	return out
}
