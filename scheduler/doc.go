// Package scheduler binds pods to peers, on the leader only.
//
// It is Kubernetes' scheduler with its default plugins, as a library. Ours are
// the settings for a handful of machines: replicas spread evenly over peers
// even when they ask for no resources, and a pod that found no place is tried
// again within a second. Kinds of resource.k8s.io are not served by our API,
// and the scheduler cannot be built without them any more: it sees them as
// empty ([emptyResources]).
//
// cmd/rookery calls [Run] for each term of leadership.
package scheduler
