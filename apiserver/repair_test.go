package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"

	"github.com/rundigitalplatform/rookery/raftstore"
)

func TestRepairAllocations(t *testing.T) {
	store := raftstore.NewMemory()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Store: store, Logger: slog.New(slog.DiscardHandler), TokenKey: key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for deadline := time.Now().Add(20 * time.Second); s.Ready() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.Ready())
		}
	}
	if err := s.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}

	// A claim without a Service, and Service kubernetes as a cluster has it that is
	// older than IPAddresses: with a claim of then.
	first := netip.MustParseAddr("10.43.0.1")
	if err := s.nodePorts.claims.take("30500"); err != nil {
		t.Fatal(err)
	}
	if err := s.addresses.objects.release(first); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{first.String(), "10.43.0.99"} {
		if err := s.addresses.objects.old.take(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.addresses.of("default", "other").Allocate(net.IP(first.AsSlice())); !errors.Is(err, ipallocator.ErrAllocated) {
		t.Errorf("an address that is claimed as before was given out: %v", err)
	}
	// One that names a Service that is not there, and one that is not of ours.
	gone, gateway := netip.MustParseAddr("10.43.0.50"), netip.MustParseAddr("10.43.0.51")
	if err := s.addresses.objects.create(gone, s.addresses.of("default", "gone").holder); err != nil {
		t.Fatal(err)
	}
	theirs := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: gateway.String()}, Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Group: "gateway.networking.k8s.io", Resource: "gateways", Namespace: "default", Name: "g"}}}
	if _, err := s.client.NetworkingV1().IPAddresses().Create(ctx, theirs, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	seen, err := s.repairOnce(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.addresses.objects.old.has(first.String()) {
		t.Error("the claim of before is still there")
	}
	if have, err := s.client.NetworkingV1().IPAddresses().Get(ctx, first.String(), metav1.GetOptions{}); err != nil || have.Spec.ParentRef.Name != "kubernetes" || have.Spec.ParentRef.Namespace != "default" {
		t.Errorf("the address of Service kubernetes is %+v, %v", have, err)
	}
	held := func(what string, want bool) {
		t.Helper()
		if !s.nodePorts.Has(30500) == want || s.addresses.objects.has(gone) != want || s.addresses.objects.old.has("10.43.0.99") != want {
			t.Error(what)
		}
	}
	held("an orphan was released at first sight", true)
	if _, err := s.repairOnce(ctx, seen); err != nil {
		t.Fatal(err)
	}
	held("an orphan was not released", false)
	if !s.addresses.objects.has(gateway) {
		t.Error("an address that a gateway holds was released")
	}
	before := store.Revision()
	if _, err := s.repairOnce(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if store.Revision() != before {
		t.Error("repair wrote although nothing was wrong")
	}
}

// Every kind that a client writes has a type for managedFields; what lacks one
// is logged by upstream at each request and otherwise goes unnoticed.
func TestTypesOfWhatIsNeverApplied(t *testing.T) {
	types := newTypes()
	binding := &corev1.Binding{}
	binding.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Binding"))
	request := &authenticationv1.TokenRequest{}
	request.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"))
	if _, err := types.ObjectToTyped(binding); err != nil {
		t.Error(err)
	}
	if _, err := types.ObjectToTyped(request); err != nil {
		t.Error(err)
	}
}
