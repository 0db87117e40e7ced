// Package dnsserver answers the cluster's names on one peer.
//
// It serves the cluster domain (Services, headless pods, ExternalName, pods by
// address, peers) and the reverse zones of the cluster's networks as the
// Kubernetes DNS specification 1.1.0 says, from local memory only, so that a
// peer that is cut off goes on answering. Every other name is forwarded to the
// machine's own resolvers through a small cache.
//
// It knows nothing of gossip, of networks or of how the informers are fed:
// those come in as functions and as a [Source]. cmd/rookery makes one [Server]
// per peer and points the pods' resolv.conf at it.
package dnsserver
