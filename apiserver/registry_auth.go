package apiserver

import (
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	"k8s.io/kubernetes/pkg/registry/authentication/selfsubjectreview"
	"k8s.io/kubernetes/pkg/registry/authentication/tokenreview"
	"k8s.io/kubernetes/pkg/registry/authorization/localsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectrulesreview"
	"k8s.io/kubernetes/pkg/registry/authorization/subjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	clusterrolepolicy "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/policybased"
	clusterrolestore "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	clusterrolebindingpolicy "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/policybased"
	clusterrolebindingstore "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	rolepolicy "k8s.io/kubernetes/pkg/registry/rbac/role/policybased"
	rolestore "k8s.io/kubernetes/pkg/registry/rbac/role/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	rolebindingpolicy "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/policybased"
	rolebindingstore "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"

	"github.com/rundigitalplatform/rookery/apiserver/authentication"
)

// auth builds the groups that say who may do what, and those that tell.
func (b *builder) auth() []group {
	roles, bindings := one(b, rolestore.NewREST), one(b, rolebindingstore.NewREST)
	clusterRoles, clusterBindings := one(b, clusterrolestore.NewREST), one(b, clusterrolebindingstore.NewREST)
	if b.err != nil {
		return nil
	}
	// The policy-based registries keep a user from granting more than they hold.
	rules := validation.NewDefaultRuleResolver(
		role.AuthorizerAdapter{Registry: role.NewRegistry(roles)},
		rolebinding.AuthorizerAdapter{Registry: rolebinding.NewRegistry(bindings)},
		clusterrole.AuthorizerAdapter{Registry: clusterrole.NewRegistry(clusterRoles)},
		clusterrolebinding.AuthorizerAdapter{Registry: clusterrolebinding.NewRegistry(clusterBindings)},
	)
	return []group{
		{"rbac.authorization.k8s.io", v1(resources{
			"roles":               rolepolicy.NewStorage(roles, b.authz, rules),
			"rolebindings":        rolebindingpolicy.NewStorage(bindings, b.authz, rules),
			"clusterroles":        clusterrolepolicy.NewStorage(clusterRoles, b.authz, rules),
			"clusterrolebindings": clusterrolebindingpolicy.NewStorage(clusterBindings, b.authz, rules),
		})},
		{"authentication.k8s.io", v1(resources{
			"tokenreviews":       tokenreview.NewREST(b.authn, []string{authentication.Issuer}),
			"selfsubjectreviews": selfsubjectreview.NewREST(),
		})},
		{"authorization.k8s.io", v1(resources{
			"subjectaccessreviews":      subjectaccessreview.NewREST(b.authz, legacyscheme.Scheme),
			"selfsubjectaccessreviews":  selfsubjectaccessreview.NewREST(b.authz, legacyscheme.Scheme),
			"localsubjectaccessreviews": localsubjectaccessreview.NewREST(b.authz, legacyscheme.Scheme),
			"selfsubjectrulesreviews":   selfsubjectrulesreview.NewREST(b.rules),
		})},
	}
}
