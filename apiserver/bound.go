package apiserver

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// boundObjects looks up what a service account token is bound to. It reads the
// registries directly: this peer's own state first, so that tokens work on an
// island and cost no round trip, and once more with a linearizable read when
// the object is not here, because it may have been created on another peer a
// moment ago.
type boundObjects struct {
	serviceAccounts, pods, secrets, nodes rest.Getter
	validatingWebhooks, mutatingWebhooks  rest.Getter
}

func lookup(ctx context.Context, from rest.Getter, namespace, name string, into runtime.Object) error {
	ctx = request.WithNamespace(ctx, namespace)
	obj, err := from.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = from.Get(ctx, name, &metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	if err := legacyscheme.Scheme.Convert(obj, into, nil); err != nil {
		return fmt.Errorf("convert %T: %w", obj, err)
	}
	return nil
}

func (b *boundObjects) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	out := &corev1.ServiceAccount{}
	return out, lookup(ctx, b.serviceAccounts, namespace, name, out)
}

func (b *boundObjects) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	out := &corev1.Pod{}
	return out, lookup(ctx, b.pods, namespace, name, out)
}

func (b *boundObjects) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	out := &corev1.Secret{}
	return out, lookup(ctx, b.secrets, namespace, name, out)
}

func (b *boundObjects) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	out := &corev1.Node{}
	return out, lookup(ctx, b.nodes, metav1.NamespaceNone, name, out)
}

func (b *boundObjects) GetValidatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	out := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	return out, lookup(ctx, b.validatingWebhooks, metav1.NamespaceNone, name, out)
}

func (b *boundObjects) GetMutatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	out := &admissionregistrationv1.MutatingWebhookConfiguration{}
	return out, lookup(ctx, b.mutatingWebhooks, metav1.NamespaceNone, name, out)
}
