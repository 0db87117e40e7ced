package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// bootstrapRoles reconciles Kubernetes' stock roles and bindings, those of the
// controllers included.
func (s *Server) bootstrapRoles(ctx context.Context) error {
	rbac := s.client.RbacV1()
	roles := func(owner reconciliation.RuleOwner, modifier reconciliation.RuleOwnerModifier) error {
		return reconcile(ctx, owner.GetName(), func() error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: owner, Client: modifier, Confirm: true}).Run()
			return err
		})
	}
	bindings := func(binding reconciliation.RoleBinding, modifier reconciliation.RoleBindingModifier) error {
		return reconcile(ctx, binding.GetName(), func() error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Client: modifier, Confirm: true}).Run()
			return err
		})
	}

	for _, role := range slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles(), []rbacv1.ClusterRole{metricsReader()}) {
		if err := roles(reconciliation.ClusterRoleRuleOwner{ClusterRole: &role}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()}); err != nil {
			return err
		}
	}
	for _, binding := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		if err := bindings(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &binding}, reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()}); err != nil {
			return err
		}
	}
	namespaced := bootstrappolicy.NamespaceRoles()
	for _, ns := range slices.Sorted(maps.Keys(namespaced)) {
		for _, role := range namespaced[ns] {
			if err := roles(reconciliation.RoleRuleOwner{Role: &role}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: s.client.CoreV1().Namespaces()}); err != nil {
				return err
			}
		}
		for _, binding := range bootstrappolicy.NamespaceRoleBindings()[ns] {
			if err := bindings(reconciliation.RoleBindingAdapter{RoleBinding: &binding}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: s.client.CoreV1().Namespaces()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// reconcile runs one step again while another peer changes the same object.
func reconcile(ctx context.Context, name string, step func() error) error {
	again := func(err error) bool {
		return ctx.Err() == nil && (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := retry.OnError(retry.DefaultRetry, again, step); err != nil {
		return fmt.Errorf("reconcile %s: %w", name, err)
	}
	return nil
}
