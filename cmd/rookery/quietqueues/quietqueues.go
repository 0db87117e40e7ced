// Package quietqueues keeps client-go's work queues from measuring themselves.
// Import it for its effect.
//
// A queue that has a name and a provider of metrics wakes twice a second for as
// long as it lives, to say how long its work has been waiting. A leader has
// seventeen of them: on an idle peer that is the half of what wakes it, and
// nobody reads the result. The provider is not asked for: package
// k8s.io/component-base/metrics/prometheus/workqueue sets itself as it is
// linked, and k8s.io/apiserver links it.
//
// The first provider that is set stays (workqueue.SetProvider), and a queue does
// not start to measure when it is client-go's own, which does nothing. That one
// has no exported name; it is what the package begins with. This package sets it
// before anyone else can: Go initialises packages that are ready in the order of
// their paths (The Go Programming Language Specification, "Program
// initialization"), this one needs no other package than the queues, and
// github.com comes before k8s.io.
package quietqueues

import (
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/util/workqueue"
)

//go:linkname provider k8s.io/client-go/util/workqueue.globalMetricsProvider
var provider workqueue.MetricsProvider

func init() { workqueue.SetProvider(provider) }
