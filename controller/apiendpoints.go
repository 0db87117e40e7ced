//lint:file-ignore SA1019 Endpoints are deprecated, but kube-apiserver still writes those of its own Service, and old clients read them.

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

// apiService is the Service in namespace default by which pods reach the API.
const apiService = "kubernetes"

// runAPIEndpoints keeps the endpoints of the API's own Service: every peer that
// lives serves it. It acts with full rights, because upstream's role for endpoint
// slices does not cover Endpoints, which kube-apiserver writes itself.
func runAPIEndpoints(ctx context.Context, e *env) error {
	client, err := kubernetes.NewForConfig(e.cfg.ClientConfig("system:rookery-controller", "system:masters"))
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	informer := e.Discovery().V1().EndpointSlices()
	w := newWaker()
	_, err = informer.Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			slice, ok := obj.(*discoveryv1.EndpointSlice)
			return ok && slice.Namespace == metav1.NamespaceDefault && slice.Labels[discoveryv1.LabelServiceName] == apiService
		},
		Handler: w.handler(),
	})
	if err != nil {
		return fmt.Errorf("watch endpoint slices: %w", err)
	}
	members, cancel := e.cfg.Members.Subscribe()
	defer cancel()
	if err := e.synced(ctx, informer.Informer()); err != nil {
		return err
	}
	have := informer.Lister().EndpointSlices(metav1.NamespaceDefault)
	e.loop(ctx, w, members, rareTick, func(ctx context.Context) error {
		var errs []error
		wanted := apiSlices(e.cfg.Members.Snapshot())
		if len(wanted) > 0 {
			errs = append(errs, writeEndpoints(ctx, client, wanted[0]))
		}
		for _, want := range wanted {
			old, err := have.Get(want.Name)
			switch {
			case apierrors.IsNotFound(err):
				_, err = client.DiscoveryV1().EndpointSlices(want.Namespace).Create(ctx, want, metav1.CreateOptions{})
			case err == nil && !sameSlice(old, want):
				want.ResourceVersion = old.ResourceVersion
				_, err = client.DiscoveryV1().EndpointSlices(want.Namespace).Update(ctx, want, metav1.UpdateOptions{})
			}
			if err != nil && !stale(err) && !apierrors.IsAlreadyExists(err) {
				errs = append(errs, fmt.Errorf("write endpoints of the api: %w", err))
			}
		}
		return errors.Join(errs...)
	})
	return nil
}

// sameSlice compares what this controller sets.
func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return a.AddressType == b.AddressType && equality.Semantic.DeepEqual(a.Ports, b.Ports) &&
		equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) && equality.Semantic.DeepEqual(a.Labels, b.Labels)
}

// apiSlices makes a slice for each address family, that of the cluster's first family
// before the other. With nobody alive there is none, so that what is written stays. Every
// peer serves the same port.
func apiSlices(members map[string]Member) (all []*discoveryv1.EndpointSlice) {
	of := func(family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
		i := slices.IndexFunc(all, func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == family })
		if i < 0 {
			i, all = len(all), append(all, newAPISlice(family))
		}
		return all[i]
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		m := members[name]
		if m.Liveness != Alive {
			continue
		}
		for _, at := range m.Addresses {
			family := discoveryv1.AddressTypeIPv4
			if at.Addr().Unmap().Is6() {
				family = discoveryv1.AddressTypeIPv6
			}
			slice := of(family)
			slice.Ports[0].Port = ptr.To(int32(at.Port()))
			endpoint := discoveryv1.Endpoint{
				Addresses:  []string{at.Addr().Unmap().String()},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			}
			if !m.Witness {
				endpoint.NodeName = ptr.To(name)
			}
			slice.Endpoints = append(slice.Endpoints, endpoint)
		}
	}
	return all
}

// newAPISlice has upstream's name for it: that of IPv4 is the Service's.
func newAPISlice(family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	name := apiService
	if family == discoveryv1.AddressTypeIPv6 {
		name += "-ipv6"
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelServiceName: apiService},
		},
		AddressType: family,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
}

// writeEndpoints keeps the older kind in step with the slice of the first family; old
// clients and `kubectl get endpoints` read it.
func writeEndpoints(ctx context.Context, client kubernetes.Interface, slice *discoveryv1.EndpointSlice) error {
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: *slice.Ports[0].Port, Protocol: corev1.ProtocolTCP}}}
	for _, ep := range slice.Endpoints {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: ep.Addresses[0], NodeName: ep.NodeName})
	}
	slices.SortFunc(subset.Addresses, func(a, b corev1.EndpointAddress) int { return strings.Compare(a.IP, b.IP) })
	want := &corev1.Endpoints{
		// The slices are written here too: nobody need mirror them.
		ObjectMeta: metav1.ObjectMeta{Name: apiService, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets:    []corev1.EndpointSubset{subset},
	}
	endpoints := client.CoreV1().Endpoints(want.Namespace)
	// From local memory: it is looked at again soon.
	old, err := endpoints.Get(ctx, want.Name, metav1.GetOptions{ResourceVersion: "0"})
	switch {
	case apierrors.IsNotFound(err):
		_, err = endpoints.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && !equality.Semantic.DeepEqual(old.Subsets, want.Subsets):
		want.ResourceVersion = old.ResourceVersion
		_, err = endpoints.Update(ctx, want, metav1.UpdateOptions{})
	}
	if err != nil && !stale(err) && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("write endpoints of the api: %w", err)
	}
	return nil
}
