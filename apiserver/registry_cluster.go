package apiserver

import (
	"k8s.io/apiserver/pkg/registry/rest"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	lease "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	endpointslice "k8s.io/kubernetes/pkg/registry/discovery/endpointslice/storage"
	ingress "k8s.io/kubernetes/pkg/registry/networking/ingress/storage"
	ingressclass "k8s.io/kubernetes/pkg/registry/networking/ingressclass/storage"
	networkpolicy "k8s.io/kubernetes/pkg/registry/networking/networkpolicy/storage"
	servicecidr "k8s.io/kubernetes/pkg/registry/networking/servicecidr/storage"
	runtimeclass "k8s.io/kubernetes/pkg/registry/node/runtimeclass/storage"
	csidriver "k8s.io/kubernetes/pkg/registry/storage/csidriver/storage"
	csinode "k8s.io/kubernetes/pkg/registry/storage/csinode/storage"
	capacity "k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity/storage"
	storageclass "k8s.io/kubernetes/pkg/registry/storage/storageclass/storage"
	attachment "k8s.io/kubernetes/pkg/registry/storage/volumeattachment/storage"
)

// cluster builds the groups that describe where and through what things run.
func (b *builder) cluster(events rest.Storage) []group {
	networking := resources{
		"ingressclasses":  one(b, ingressclass.NewREST),
		"networkpolicies": one(b, networkpolicy.NewREST),
		"ipaddresses":     b.addresses.Registry(),
	}
	withStatus(b, networking, "ingresses", ingress.NewREST)
	ranges, rangesStatus, err := servicecidr.NewREST(b.options)
	b.note(err)
	networking.add(resources{"servicecidrs": &serviceRanges{REST: ranges, only: b.addresses.Ranges()}, "servicecidrs/status": rangesStatus})
	nodes, drivers, capacities, attachments := one(b, csinode.NewStorage), one(b, csidriver.NewStorage), one(b, capacity.NewStorage), one(b, attachment.NewStorage)
	if b.err != nil {
		return nil
	}
	return []group{
		{"networking.k8s.io", v1(networking)},
		{"discovery.k8s.io", v1(resources{"endpointslices": one(b, endpointslice.NewREST)})},
		{"events.k8s.io", v1(resources{"events": events})},
		{"coordination.k8s.io", v1(resources{"leases": one(b, lease.NewREST)})},
		{"node.k8s.io", v1(resources{"runtimeclasses": one(b, runtimeclass.NewREST)})},
		{"storage.k8s.io", v1(resources{
			"storageclasses": one(b, storageclass.NewREST),
			"csinodes":       nodes.CSINode, "csinodes/status": nodes.Status,
			"csidrivers":           drivers.CSIDriver,
			"csistoragecapacities": capacities.CSIStorageCapacity,
			"volumeattachments":    attachments.VolumeAttachment, "volumeattachments/status": attachments.Status,
		})},
	}
}
