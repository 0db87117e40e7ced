package apiserver

import (
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	mutatingpolicy "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicy/storage"
	mutatingbinding "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicybinding/storage"
	mutatingwebhook "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration/storage"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/resolver"
	validatingpolicy "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy/storage"
	validatingbinding "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding/storage"
	validatingwebhook "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration/storage"
)

// admission builds the group in which users say what else is asked before
// something is written. Who makes a policy with parameters must be allowed to
// read these: for that the registries ask the authorizer and discovery.
func (b *builder) admission() []group {
	kinds, err := resolver.NewDiscoveryResourceResolver(b.client.Discovery())
	b.note(err)
	validating, validatingStatus, err := validatingpolicy.NewREST(b.options, b.authz, kinds)
	b.note(err)
	mutating, err := mutatingpolicy.NewREST(b.options, b.authz, kinds)
	b.note(err)
	if b.err != nil {
		return nil
	}
	validatingBindings, err := validatingbinding.NewREST(b.options, b.authz, &validatingbinding.DefaultPolicyGetter{Getter: validating}, kinds)
	b.note(err)
	mutatingBindings, err := mutatingbinding.NewREST(b.options, b.authz, &mutatingbinding.DefaultPolicyGetter{Getter: mutating}, kinds)
	b.note(err)
	validatingHooks, mutatingHooks := one(b, validatingwebhook.NewREST), one(b, mutatingwebhook.NewREST)
	b.bound.validatingWebhooks, b.bound.mutatingWebhooks = validatingHooks, mutatingHooks
	return []group{{"admissionregistration.k8s.io", v1(resources{
		"validatingwebhookconfigurations": validatingHooks,
		"mutatingwebhookconfigurations":   mutatingHooks,
		"validatingadmissionpolicies":     validating, "validatingadmissionpolicies/status": validatingStatus,
		"validatingadmissionpolicybindings": validatingBindings,
		"mutatingadmissionpolicies":         mutating,
		"mutatingadmissionpolicybindings":   mutatingBindings,
	})}}
}
