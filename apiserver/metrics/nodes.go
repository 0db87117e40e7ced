package metrics

import (
	"cmp"
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// nodes is the registry of NodeMetrics.
type nodes struct {
	lister corelisters.NodeLister
	agents *agents[v1beta1.NodeMetrics]
}

var _ interface {
	rest.Storage
	rest.KindProvider
	rest.Lister
	rest.Getter
	rest.Scoper
	rest.SingularNameProvider
} = (*nodes)(nil)

func (*nodes) New() runtime.Object     { return &v1beta1.NodeMetrics{} }
func (*nodes) NewList() runtime.Object { return &v1beta1.NodeMetricsList{} }
func (*nodes) Destroy()                {}
func (*nodes) Kind() string            { return "NodeMetrics" }
func (*nodes) NamespaceScoped() bool   { return false }

// GetSingularName is empty, as metrics-server's: `node` means the Node.
func (*nodes) GetSingularName() string { return "" }

// List implements rest.Lister.
func (n *nodes) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	labels, fields := selectors(options)
	found, err := n.lister.List(labels)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, node := range found {
		if fields.Matches(metadata("", node.Name)) {
			names = append(names, node.Name)
		}
	}
	return n.of(ctx, names)
}

// Get implements rest.Getter.
func (n *nodes) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	list, err := n.of(ctx, []string{name})
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, apierrors.NewNotFound(v1beta1.Resource("nodes"), name)
	}
	return &list.Items[0], nil
}

func (n *nodes) of(ctx context.Context, names []string) (*v1beta1.NodeMetricsList, error) {
	answers, err := n.agents.ask(ctx, names)
	if err != nil {
		return nil, err
	}
	list := &v1beta1.NodeMetricsList{Items: []v1beta1.NodeMetrics{}}
	for name, said := range answers {
		node, err := n.lister.Get(name)
		if err != nil {
			continue // it was removed, or never was
		}
		m := *said
		m.ObjectMeta = metav1.ObjectMeta{Name: name, Labels: node.Labels, CreationTimestamp: metav1.Now()}
		list.Items = append(list.Items, m)
	}
	slices.SortFunc(list.Items, func(a, b v1beta1.NodeMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}
