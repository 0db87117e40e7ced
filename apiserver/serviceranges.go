package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/networking"
	ipaddress "k8s.io/kubernetes/pkg/registry/networking/ipaddress/storage"
	servicecidr "k8s.io/kubernetes/pkg/registry/networking/servicecidr/storage"

	"github.com/rundigitalplatform/rookery/apiserver/allocation"
)

// rangeName is the ServiceCIDR that there always is; upstream's name.
const rangeName = "kubernetes"

// newAddresses makes the allocators of Service addresses.
func (s *Server) newAddresses() (allocation.Families, error) {
	registry, err := ipaddress.NewREST(restOptions{store: s.cfg.Store})
	if err != nil {
		return nil, fmt.Errorf("build registry of ipaddresses: %w", err)
	}
	return allocation.NewFamilies(s.cfg.Store, registryPrefix, registry, s.cfg.ServiceCIDRs), nil
}

// NewRepair is for the leader: it mends what Services hold or do not hold.
func (s *Server) NewRepair() *allocation.Repair {
	return &allocation.Repair{Client: s.client, Store: s.cfg.Store, Addresses: s.addresses, NodePorts: s.nodePorts, Logger: s.cfg.Logger}
}

// serviceRanges lets be the one ServiceCIDR that the cluster was made with, of one IP
// family or of both. What is not in it the peers neither route nor refuse (package network), so a second
// one would hand out addresses that lead nowhere.
type serviceRanges struct {
	*servicecidr.REST
	only []string
}

func (r *serviceRanges) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, opts *metav1.CreateOptions) (runtime.Object, error) {
	return r.REST.Create(ctx, obj, r.allowed(validate), opts)
}

func (r *serviceRanges) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, onCreate rest.ValidateObjectFunc, onUpdate rest.ValidateObjectUpdateFunc,
	forceCreate bool, opts *metav1.UpdateOptions) (runtime.Object, bool, error) {
	change := func(ctx context.Context, obj, old runtime.Object) error {
		if err := r.allowed(rest.ValidateAllObjectFunc)(ctx, obj); err != nil {
			return err
		}
		return onUpdate(ctx, obj, old)
	}
	return r.REST.Update(ctx, name, info, r.allowed(onCreate), change, forceCreate, opts)
}

// allowed refuses every other range, then asks validate.
func (r *serviceRanges) allowed(validate rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		o := obj.(*networking.ServiceCIDR) // of nothing else is this the registry
		if o.Name != rangeName || !slices.Equal(o.Spec.CIDRs, r.only) {
			return refuseRange(o.Name, fmt.Errorf("the addresses of Services come from %s in this cluster, fixed when it is made (--service-cidr)", strings.Join(r.only, " and ")))
		}
		return validate(ctx, obj)
	}
}

func (r *serviceRanges) Delete(_ context.Context, name string, _ rest.ValidateObjectFunc, _ *metav1.DeleteOptions) (runtime.Object, bool, error) {
	return nil, false, refuseRange(name, errors.New("the addresses of Services come from it"))
}

func (r *serviceRanges) DeleteCollection(context.Context, rest.ValidateObjectFunc, *metav1.DeleteOptions, *metainternal.ListOptions) (runtime.Object, error) {
	return nil, refuseRange("", errors.New("the addresses of Services come from them"))
}

func refuseRange(name string, why error) error {
	return apierrors.NewForbidden(networking.Resource("servicecidrs"), name, why)
}

// bootstrapRange creates the ServiceCIDR and says that it is in use.
func (s *Server) bootstrapRange(ctx context.Context) error {
	all := s.client.NetworkingV1().ServiceCIDRs()
	want := &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: rangeName},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: s.addresses.Ranges()},
	}
	if err := ensure(ctx, want.Name, all.Get, all.Create, want); err != nil {
		return fmt.Errorf("create servicecidr %s: %w", want.Name, err)
	}
	have, err := all.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get servicecidr %s: %w", want.Name, err)
	}
	if meta.IsStatusConditionTrue(have.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
		return nil
	}
	meta.SetStatusCondition(&have.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Reason: "InUse", Message: "Service addresses come from this range",
	})
	if _, err := all.UpdateStatus(ctx, have, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("set servicecidr %s ready: %w", want.Name, err)
	}
	return nil
}
