// Package ingress is the reverse proxy that makes Ingresses (networking.k8s.io/v1)
// true, on every peer.
//
// It reads Ingresses, their Services, EndpointSlices and TLS Secrets from the local
// peer, builds one immutable routing table of them, and proxies HTTP/1.1, HTTP/2 and
// WebSocket straight to ready endpoints on living peers. The first Ingress of its class
// opens the ports and the last one closes them: a cluster without any pays for a watch.
//
// It leaves to others who is alive, the cluster's CA and where settings come from: they
// come in as functions. cmd/rookery makes one [Proxy] per peer, and runs [Status] on the
// leader, which writes the addresses into Ingresses' status.
package ingress
