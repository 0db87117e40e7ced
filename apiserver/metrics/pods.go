package metrics

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// pods is the registry of PodMetrics.
type pods struct {
	lister corelisters.PodLister
	agents *agents[v1beta1.PodMetricsList]
}

var _ interface {
	rest.Storage
	rest.KindProvider
	rest.Lister
	rest.Getter
	rest.Scoper
	rest.SingularNameProvider
} = (*pods)(nil)

func (*pods) New() runtime.Object     { return &v1beta1.PodMetrics{} }
func (*pods) NewList() runtime.Object { return &v1beta1.PodMetricsList{} }
func (*pods) Destroy()                {}
func (*pods) Kind() string            { return "PodMetrics" }
func (*pods) NamespaceScoped() bool   { return true }

// GetSingularName is empty, as metrics-server's: `pod` means the Pod.
func (*pods) GetSingularName() string { return "" }

// List implements rest.Lister.
func (p *pods) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	byLabel, byField := selectors(options)
	found, err := p.lister.Pods(request.NamespaceValue(ctx)).List(byLabel)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(pod *corev1.Pod) bool { return !byField.Matches(metadata(pod.Namespace, pod.Name)) })
	return p.of(ctx, found)
}

// Get implements rest.Getter.
func (p *pods) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	missing := apierrors.NewNotFound(v1beta1.Resource("pods"), name)
	pod, err := p.lister.Pods(request.NamespaceValue(ctx)).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	list, err := p.of(ctx, []*corev1.Pod{pod})
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, missing
	}
	return &list.Items[0], nil
}

type key struct{ namespace, name string }

// of asks the agents of the nodes that these pods are bound to. What an agent says of
// pods that are bound elsewhere counts for nothing.
func (p *pods) of(ctx context.Context, wanted []*corev1.Pod) (*v1beta1.PodMetricsList, error) {
	on := map[string]map[key]*corev1.Pod{}
	for _, pod := range wanted {
		if node := pod.Spec.NodeName; node != "" {
			if on[node] == nil {
				on[node] = map[key]*corev1.Pod{}
			}
			on[node][key{pod.Namespace, pod.Name}] = pod
		}
	}
	nodes := make([]string, 0, len(on))
	for node := range on {
		nodes = append(nodes, node)
	}
	answers, err := p.agents.ask(ctx, nodes)
	if err != nil {
		return nil, err
	}
	list := &v1beta1.PodMetricsList{Items: []v1beta1.PodMetrics{}}
	for node, said := range answers {
		for _, m := range said.Items {
			pod := on[node][key{m.Namespace, m.Name}]
			if pod == nil {
				continue
			}
			m.ObjectMeta = metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, Labels: pod.Labels, CreationTimestamp: metav1.Now()}
			list.Items = append(list.Items, m)
		}
	}
	slices.SortFunc(list.Items, func(a, b v1beta1.PodMetrics) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// selectors of a list; the fields that may be named are those of every kind.
func selectors(options *internalversion.ListOptions) (labels.Selector, fields.Selector) {
	byLabel, byField := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		byLabel = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		byField = options.FieldSelector
	}
	return byLabel, byField
}

func metadata(namespace, name string) fields.Set {
	return fields.Set{"metadata.namespace": namespace, "metadata.name": name}
}
