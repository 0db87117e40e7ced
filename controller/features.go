package controller

import "k8s.io/kubernetes/pkg/features"

// Features are the feature gates of Kubernetes that these controllers want set
// otherwise than by default. Gates are global to the process, so cmd sets them,
// once, before anything starts: utilfeature.DefaultMutableFeatureGate.SetFromMap.
//
// StaleControllerConsistency makes a sync fail, log an error and back off
// whenever a controller's own last write is not yet in its cache. Expectations
// have guarded against that since the beginning, and writes here come back
// through local memory within a millisecond.
func Features() map[string]bool {
	return map[string]bool{
		string(features.StaleControllerConsistencyDaemonSet):   false,
		string(features.StaleControllerConsistencyHPA):         false,
		string(features.StaleControllerConsistencyJob):         false,
		string(features.StaleControllerConsistencyReplicaSet):  false,
		string(features.StaleControllerConsistencyStatefulSet): false,
	}
}
