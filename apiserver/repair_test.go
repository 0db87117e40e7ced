package apiserver_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"

	"github.com/rundigitalplatform/rookery/apiserver/allocation"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func TestRepairAllocations(t *testing.T) {
	store := raftstore.NewMemory()
	p := start(t, store)
	ctx := t.Context()
	addresses := p.admin.NetworkingV1().IPAddresses()
	ports := allocation.NewNodePorts(store, "/registry", allocation.PortRange{First: 30000, Last: 32767})

	// A claim without a Service, and Service kubernetes as a cluster has it that is
	// older than IPAddresses: with a claim of then.
	const first, claimed = "10.43.0.1", "10.43.0.99"
	if err := ports.Allocate(30500); err != nil {
		t.Fatal(err)
	}
	if err := addresses.Delete(ctx, first, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	old := func(address string) string { return "/registry/ranges/serviceips/" + address }
	for _, name := range []string{first, claimed} {
		if _, err := store.Txn(ctx, raftstore.Txn{{Key: old(name), Kind: raftstore.Put, Value: []byte{1}}}); err != nil {
			t.Fatal(err)
		}
	}
	other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: corev1.ServiceSpec{ClusterIP: first, Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := p.admin.CoreV1().Services("default").Create(ctx, other, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "already allocated") {
		t.Errorf("an address that is claimed as before was given out: %v", err)
	}
	// One that names a Service that is not there, and one that is not of ours.
	const gone, gateway = "10.43.0.50", "10.43.0.51"
	for _, object := range []*networkingv1.IPAddress{
		{
			ObjectMeta: metav1.ObjectMeta{Name: gone, Labels: map[string]string{networkingv1.LabelManagedBy: ipallocator.ControllerName}},
			Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "gone"}},
		}, {
			ObjectMeta: metav1.ObjectMeta{Name: gateway},
			Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Group: "gateway.networking.k8s.io", Resource: "gateways", Namespace: "default", Name: "g"}},
		},
	} {
		if _, err := addresses.Create(ctx, object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	there := func(address string) bool {
		_, err := addresses.Get(ctx, address, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	isClaimed := func(address string) bool { kv, _ := store.Get(old(address)); return kv != nil }
	repair := p.NewRepair()
	once := func() {
		t.Helper()
		if err := repair.Once(ctx); err != nil {
			t.Fatal(err)
		}
	}
	held := func(what string, want bool) {
		t.Helper()
		if ports.Has(30500) != want || there(gone) != want || isClaimed(claimed) != want {
			t.Error(what)
		}
	}
	once()
	if isClaimed(first) {
		t.Error("the claim of before is still there")
	}
	if have, err := addresses.Get(ctx, first, metav1.GetOptions{}); err != nil || have.Spec.ParentRef.Name != "kubernetes" || have.Spec.ParentRef.Namespace != "default" {
		t.Errorf("the address of Service kubernetes is %+v, %v", have, err)
	}
	held("an orphan was released at first sight", true)
	once()
	held("an orphan was not released", false)
	if !there(gateway) {
		t.Error("an address that a gateway holds was released")
	}
	before := store.Revision()
	once()
	if store.Revision() != before {
		t.Error("repair wrote although nothing was wrong")
	}
}
