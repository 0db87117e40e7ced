package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"

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

	// A claim without a Service, and Service kubernetes without its claim.
	if err := s.nodePorts.claims.take("30500"); err != nil {
		t.Fatal(err)
	}
	if err := s.addresses.claims.release("10.43.0.1"); err != nil {
		t.Fatal(err)
	}
	seen, err := s.repairOnce(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !s.addresses.claims.has("10.43.0.1") {
		t.Error("the claim of Service kubernetes has not come back")
	}
	if !s.nodePorts.Has(30500) {
		t.Error("an orphan was released at first sight")
	}
	if _, err := s.repairOnce(ctx, seen); err != nil {
		t.Fatal(err)
	}
	if s.nodePorts.Has(30500) {
		t.Error("an orphan was not released")
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
