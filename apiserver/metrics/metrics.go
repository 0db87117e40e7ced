// Package metrics serves metrics.k8s.io/v1beta1, what nodes and pods use, as
// metrics-server does: for `kubectl top` and for autoscaling.
//
// Nothing is stored and nothing runs until somebody asks. Then the agents of the
// nodes in question are asked, all at once, and what they said is kept for some
// seconds. What a node uses only its agent knows; which pods and nodes there are, and
// their labels, is what this peer's informers say. Package apiserver installs it.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/informers"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Config says where usage comes from. All fields but Alive are required.
type Config struct {
	// Informers know the pods and nodes. [New] asks for their listers; who calls it starts them.
	Informers informers.SharedInformerFactory
	// Agent tells how to reach the agent of a node.
	Agent func(ctx context.Context, node string) (*url.URL, http.RoundTripper, error)
	// Alive tells whether it is worth asking a node's agent. It must not block. nil: it is.
	Alive func(node string) bool
	// Logger hears of agents that do not answer.
	Logger *slog.Logger
}

// New returns the registries of the group by resource.
func New(cfg Config) map[string]rest.Storage {
	if cfg.Alive == nil {
		cfg.Alive = func(string) bool { return true }
	}
	core := cfg.Informers.Core().V1()
	return map[string]rest.Storage{
		"nodes": &nodes{core.Nodes().Lister(), newAgents[v1beta1.NodeMetrics](cfg, "/usage/node")},
		"pods":  &pods{core.Pods().Lister(), newAgents[v1beta1.PodMetricsList](cfg, "/usage/pods")},
	}
}

// NewScheme returns a scheme of the group's kinds. It is not part of Kubernetes' own
// scheme, to which nothing may be added while others use it.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := v1beta1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	unversioned := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, unversioned)
	scheme.AddUnversionedTypes(unversioned, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	return scheme, nil
}
