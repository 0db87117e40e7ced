package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/utils/ptr"
)

// Bootstrap creates what a cluster starts with: the system namespaces, roles
// and bindings, priority classes, what flow control and ServiceCIDR say of this
// cluster, and the Service `kubernetes`. What exists is
// kept; stock roles get back rules they have lost, unless annotated otherwise.
// The leader calls it at the start of each term; it may run twice at once.
func (s *Server) Bootstrap(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.bootstrapNamespaces, s.bootstrapRoles, s.bootstrapPriorities, s.bootstrapFlowControl, s.bootstrapRange, s.bootstrapService} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ensure creates an object that is not there. It looks first, because creating
// asks webhooks before it finds out, and a cluster whose webhook is down could
// have no leader.
func ensure[T any](ctx context.Context, name string, get func(context.Context, string, metav1.GetOptions) (T, error),
	create func(context.Context, T, metav1.CreateOptions) (T, error), object T) error {
	_, err := get(ctx, name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	if _, err = create(ctx, object, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (s *Server) bootstrapNamespaces(ctx context.Context) error {
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		all := s.client.CoreV1().Namespaces()
		if err := ensure(ctx, name, all.Get, all.Create, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
	}
	return nil
}

func (s *Server) bootstrapPriorities(ctx context.Context) error {
	for _, class := range schedulingv1.SystemPriorityClasses() {
		all := s.client.SchedulingV1().PriorityClasses()
		if err := ensure(ctx, class.Name, all.Get, all.Create, class); err != nil {
			return fmt.Errorf("create priority class %s: %w", class.Name, err)
		}
	}
	return nil
}

// bootstrapService creates the Service through which pods reach the API, at the
// first address of the service network, and as upstream's of the first IP family only. Its endpoints, the peers, are kept by a
// controller, since peers come and go.
func (s *Server) bootstrapService(ctx context.Context) error {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type:            corev1.ServiceTypeClusterIP,
			ClusterIP:       s.addresses[0].At(1).String(),
			IPFamilyPolicy:  ptr.To(corev1.IPFamilyPolicySingleStack),
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports:           []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt(s.cfg.APIPort)}},
		},
	}
	services := s.client.CoreV1().Services(metav1.NamespaceDefault)
	// Looked up first: creating claims the address, which an existing Service holds.
	if _, err := services.Get(ctx, svc.Name, metav1.GetOptions{}); err == nil {
		return nil
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("get service kubernetes: %w", err)
	}
	if _, err := services.Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		// Another peer may have come first, and then its claim is what this one met.
		if _, again := services.Get(ctx, svc.Name, metav1.GetOptions{}); again == nil {
			return nil
		}
		return fmt.Errorf("create service kubernetes: %w", err)
	}
	return nil
}
