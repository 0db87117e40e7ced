package allocation

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
)

// takenAddresses returns the IPAddresses by name.
func (r *Repair) takenAddresses(ctx context.Context) (map[string]networkingv1.IPAddress, error) {
	list, err := r.Client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list ipaddresses: %w", err)
	}
	out := make(map[string]networkingv1.IPAddress, len(list.Items))
	for _, object := range list.Items {
		out[object.Name] = object
	}
	return out, nil
}

// repairAddresses gives each Service the IPAddresses that it lacks, and adds to
// orphans, by key and revision, those that name a Service which does not hold
// them. What somebody else created, a gateway for example, is theirs.
//
// Of a cluster that is older than IPAddresses here, it turns the claims into them.
func (r *Repair) repairAddresses(taken map[string]networkingv1.IPAddress, services []corev1.Service, orphans map[string]int64) error {
	o := r.Addresses[0].objects // the same for each family
	held := map[string]*corev1.Service{}
	for i := range services {
		for _, addr := range r.addressesOf(&services[i]) {
			if other := held[addr.String()]; other != nil {
				r.Logger.Error("two services have the same address: delete one and create it again", "address", addr,
					"service", services[i].Namespace+"/"+services[i].Name, "other", other.Namespace+"/"+other.Name)
				continue
			}
			held[addr.String()] = &services[i]
			if _, ok := taken[addr.String()]; ok {
				continue
			}
			holder := r.Addresses[0].For(services[i].Namespace, services[i].Name).holder
			if err := r.again(&services[i], addr.String(), o.create(addr, holder)); err != nil {
				return err
			}
		}
	}
	for name, object := range taken {
		if object.Labels[networkingv1.LabelManagedBy] != ipallocator.ControllerName || isHeldBy(held[name], object.Spec.ParentRef) {
			continue
		}
		revision, err := strconv.ParseInt(object.ResourceVersion, 10, 64)
		if err != nil {
			return fmt.Errorf("read resource version of ipaddress %s: %w", name, err)
		}
		orphans[o.keys.prefix+name] = revision
	}
	return r.retireClaims(held, orphans)
}

// retireClaims releases the claims of before that have become objects, and adds
// to orphans those that no Service holds.
func (r *Repair) retireClaims(held map[string]*corev1.Service, orphans map[string]int64) error {
	o := r.Addresses[0].objects
	claims, err := o.old.all()
	if err != nil {
		return err
	}
	for name, revision := range claims {
		if held[name] == nil {
			orphans[o.old.prefix+name] = revision
			continue
		}
		if err := o.old.release(name); err != nil {
			return err
		}
	}
	return nil
}

func isHeldBy(svc *corev1.Service, ref *networkingv1.ParentReference) bool {
	return svc != nil && ref != nil && ref.Group == "" && ref.Resource == "services" && ref.Namespace == svc.Namespace && ref.Name == svc.Name
}

// addressesOf are those of the ranges that a Service must hold.
func (r *Repair) addressesOf(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, ip := range svc.Spec.ClusterIPs {
		for _, a := range r.Addresses { // one at most has it: each is of another IP family
			if addr, err := a.usable(net.ParseIP(ip)); err == nil {
				out = append(out, addr)
			}
		}
	}
	return out
}
