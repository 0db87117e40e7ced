package apiserver

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// openPaths are answered to anybody, so that a balancer or a person without
// credentials can see whether this peer is well.
func openPaths() []string { return []string{"/livez", "/readyz", "/healthz", "/version"} }

// newAuthorizer says who may do what: anybody the open paths, system:masters
// everything, a peer what its pods need (graph knows which these are), all others
// what RBAC grants.
func newAuthorizer(factory informers.SharedInformerFactory, graph *node.Graph) (authorizer.Authorizer, authorizer.RuleResolver, error) {
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
	ofPeers := node.NewAuthorizer(graph, nodeidentifier.NewDefaultNodeIdentifier(), bootstrappolicy.NodeRules())
	all, err := union.New(
		union.NamedAuthorizer{AuthorizerName: "OpenPaths", Authorizer: open},
		union.NamedAuthorizer{AuthorizerName: "Masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		union.NamedAuthorizer{AuthorizerName: "Node", Authorizer: ofPeers},
		union.NamedAuthorizer{AuthorizerName: "RBAC", Authorizer: byRole},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("build authorizer: %w", err)
	}
	return all, byRole, nil
}

// feed keeps the graph of which objects the pods of each peer refer to. Devices and
// pod certificates are not served, so nothing of them is in it.
func feed(graph *node.Graph, factory informers.SharedInformerFactory) {
	core := factory.Core().V1()
	node.AddGraphEventHandlers(graph, core.Nodes(), core.Pods(), core.PersistentVolumes(), factory.Storage().V1().VolumeAttachments(), nil, nil)
}
