package apiserver

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// newAuthorizer says who may do what: anybody the open paths, system:masters
// everything, all others what RBAC grants. There is no node authorizer: a peer
// holds the whole state in its own log, so that limiting what its agent may
// read through the API would protect nothing; agents have ClusterRole system:node.
func newAuthorizer(factory informers.SharedInformerFactory) (authorizer.Authorizer, authorizer.RuleResolver, error) {
	open, err := path.NewAuthorizer(openPaths())
	if err != nil {
		return nil, nil, fmt.Errorf("build authorizer of open paths: %w", err)
	}
	r := factory.Rbac().V1()
	byRole := rbac.New(
		&rbac.RoleGetter{Lister: r.Roles().Lister()},
		&rbac.RoleBindingLister{Lister: r.RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: r.ClusterRoles().Lister()},
		&rbac.ClusterRoleBindingLister{Lister: r.ClusterRoleBindings().Lister()},
	)
	all, err := union.New(
		union.NamedAuthorizer{AuthorizerName: "OpenPaths", Authorizer: open},
		union.NamedAuthorizer{AuthorizerName: "Masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		union.NamedAuthorizer{AuthorizerName: "RBAC", Authorizer: byRole},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("build authorizer: %w", err)
	}
	return all, byRole, nil
}
