package apiserver

import (
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
)

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
