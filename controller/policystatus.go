package controller

import (
	"context"
	"fmt"

	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
)

// runPolicyStatus tells the authors of ValidatingAdmissionPolicies, in their
// status, which expressions do not fit the kinds they are for. The schemas come
// from the API's documents; upstream's are generated code of many megabytes.
func runPolicyStatus(ctx context.Context, e *env) error {
	types := &validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: e.client.Discovery()},
		RestMapper:     newMapper(e.client.Discovery()),
	}
	registration := e.client.AdmissionregistrationV1()
	c, err := validatingadmissionpolicystatus.NewController(e.Admissionregistration().V1().ValidatingAdmissionPolicies(), registration.ValidatingAdmissionPolicies(), types)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func policiesOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Admissionregistration().V1().ValidatingAdmissionPolicies().Informer()
}
