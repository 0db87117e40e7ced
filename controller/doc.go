// Package controller drives what is towards what is wanted, on the leader only.
//
// Deployments, replica sets, daemon sets, stateful sets, jobs, endpoint slices,
// namespaces, garbage and the rest are Kubernetes' own controllers, as
// libraries. Ours are node health from gossip ([health.go]), the endpoints of
// the API itself and the removal of pods of nodes that are gone.
//
// The package knows gossip only as [Members] and the API only as a client; it
// starts nothing by itself. cmd/rookery calls [Run] for each term of leadership,
// with a context that ends with the term: new term, new objects.
package controller
