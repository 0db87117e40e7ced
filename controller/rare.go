//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

package controller

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// The rare kinds, see controller.rare. Jobs themselves are not among them: their
// controller also lets go of pods whose Job is gone.

func daemonSetsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Apps().V1().DaemonSets().Informer()
}

func statefulSetsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Apps().V1().StatefulSets().Informer()
}

func cronJobsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Batch().V1().CronJobs().Informer()
}

func jobsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Batch().V1().Jobs().Informer()
}

func replicationControllersOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Core().V1().ReplicationControllers().Informer()
}

func budgetsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Policy().V1().PodDisruptionBudgets().Informer()
}

func quotasOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Core().V1().ResourceQuotas().Informer()
}

func certificateRequestsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Certificates().V1().CertificateSigningRequests().Informer()
}

func endpointsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Core().V1().Endpoints().Informer()
}

// isWrittenByHand tells Endpoints that people wrote from those that follow a
// Service's pods or the peers, whose slices are made without them.
func isWrittenByHand(obj any) bool {
	e, ok := obj.(*corev1.Endpoints)
	return ok && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}
