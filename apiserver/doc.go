// Package apiserver is the Kubernetes API as one [net/http.Handler], served by
// every peer over a [raftstore.Store].
//
// The semantics (types, defaults, validation, registries, patches, server-side
// apply, tables, admission, RBAC) are Kubernetes' own packages, put together
// without its generic server: no etcd, no watch cache, no OpenAPI built at run
// time. What is ours is the wiring, the identity of callers inside the process,
// and the allocation of Service addresses and ports by compare-and-set keys.
//
// It leaves TLS and the listening to cmd/rookery, storage of objects to
// apiserver/kubestore, and the running of controllers to the rooms above, which
// reach it through [Server.ClientConfig] and [Server.Informers] like any other
// client: every write is authenticated, authorized and admitted.
//
// See docs/design/api.md for the filters and the start order.
package apiserver
