// Package customresources serves what users define by CustomResourceDefinitions:
// Kubernetes' own handler, controllers and document builders of
// k8s.io/apiextensions-apiserver, put together without its server.
//
// A cluster without definitions pays for none of it. [API] waits with a watch on the
// store; the first definition that reaches this peer makes its informer, handler and
// documents, on every peer, also after a restart. What writes the status of definitions
// runs once in the cluster, on the leader ([API.RunControllers]).
//
// It leaves authentication, authorization and admission to package apiserver, which
// composes it: the registry of the definitions themselves ([Definitions]) is one of its
// groups, and API answers the requests under /apis/ that no built-in group takes.
//
// See docs/design/customresources.md.
package customresources
