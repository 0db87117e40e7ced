package allocation

import (
	"context"
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
)

// Registry is that of IPAddresses.
type Registry interface {
	rest.Storage
	rest.Creater
	rest.GracefulDeleter
}

// addressObjects keeps Service addresses, each as an IPAddress that names its
// Service: created, it is taken, because the store lets one creation win. They
// are written by the registry itself, past admission: an address is no business
// of webhooks, and an island's must not wait for one.
//
// Before there were IPAddresses here, a claim was a key under old. What is left
// of those still counts; [Repair] turns them into objects.
type addressObjects struct {
	registry Registry
	keys     claims // of the registry's objects, to look at
	old      claims
}

// take claims an address for a Service, or returns errTaken.
func (o *addressObjects) take(addr netip.Addr, holder *networking.ParentReference) error {
	if o.old.has(addr.String()) {
		return errTaken
	}
	return o.create(addr, holder)
}

func (o *addressObjects) create(addr netip.Addr, holder *networking.ParentReference) error {
	family := "IPv4"
	if addr.Is6() {
		family = "IPv6"
	}
	object := &networking.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name:   addr.String(),
			Labels: map[string]string{networkingv1.LabelIPAddressFamily: family, networkingv1.LabelManagedBy: ipallocator.ControllerName},
		},
		Spec: networking.IPAddressSpec{ParentRef: holder},
	}
	ctx, cancel := claimContext()
	defer cancel()
	switch _, err := o.registry.Create(ctx, object, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); {
	case apierrors.IsAlreadyExists(err):
		return errTaken
	case err != nil:
		return fmt.Errorf("create ipaddress %s: %w", addr, err)
	}
	return nil
}

// claimContext is of no user's request: a claim is not given up half-way with its
// client. The registry validates by the version that a request would name.
func claimContext() (context.Context, context.CancelFunc) {
	ctx := request.WithRequestInfo(context.Background(), &request.RequestInfo{
		IsResourceRequest: true, APIGroup: networkingv1.GroupName, APIVersion: "v1", Resource: "ipaddresses",
	})
	return context.WithTimeout(request.WithNamespace(ctx, metav1.NamespaceNone), claimTimeout)
}

// release gives an address back. Releasing what is not taken is no error.
func (o *addressObjects) release(addr netip.Addr) error {
	ctx, cancel := claimContext()
	defer cancel()
	if _, _, err := o.registry.Delete(ctx, addr.String(), rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete ipaddress %s: %w", addr, err)
	}
	if o.old.has(addr.String()) {
		return o.old.release(addr.String())
	}
	return nil
}

// has tells whether an address is taken as far as this peer knows.
func (o *addressObjects) has(addr netip.Addr) bool {
	return o.keys.has(addr.String()) || o.old.has(addr.String())
}

// names are the addresses that are taken as far as this peer knows.
func (o *addressObjects) names() ([]string, error) {
	var out []string
	for _, c := range []claims{o.keys, o.old} {
		held, err := c.all()
		if err != nil {
			return nil, err
		}
		for name := range held {
			out = append(out, name)
		}
	}
	return out, nil
}
