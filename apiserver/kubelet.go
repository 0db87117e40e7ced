package apiserver

import (
	"context"
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ktypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	kubelet "k8s.io/kubernetes/pkg/kubelet/client"
)

// agents finds the way to a node's agent by [Config].Kubelet instead of by the
// addresses and port in the Node's status.
type agents struct{ cfg Config }

func (a agents) GetConnectionInfo(ctx context.Context, node ktypes.NodeName) (*kubelet.ConnectionInfo, error) {
	if a.cfg.Kubelet == nil {
		return nil, apierrors.NewServiceUnavailable("this peer has no way to the agents of nodes")
	}
	at, transport, err := a.cfg.Kubelet(ctx, string(node))
	if err != nil {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("reach the agent of node %q: %v", node, err))
	}
	return &kubelet.ConnectionInfo{
		Scheme:                         at.Scheme,
		Hostname:                       at.Hostname(),
		Port:                           at.Port(),
		Transport:                      transport,
		InsecureSkipTLSVerifyTransport: transport,
	}, nil
}

// endpointSlices answers the service proxy from the API itself: the call is rare, an
// informer of every EndpointSlice would cost memory all the time.
type endpointSlices struct{ client kubernetes.Interface }

func (s endpointSlices) GetEndpointSlices(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	if len(validation.IsValidLabelValue(service)) > 0 || len(validation.IsDNS1123Label(namespace)) > 0 {
		return nil, nil // there is no such Service, and the list would be refused
	}
	list, err := s.client.DiscoveryV1().EndpointSlices(namespace).List(context.Background(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service, ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices of service %s/%s: %w", namespace, service, err)
	}
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}
