package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/rundigitalplatform/rookery/apiserver/metrics"
)

// metricsGroup builds metrics.k8s.io, which is not Kubernetes' own and so has a scheme of its own.
func (s *Server) metricsGroup() (group, *runtime.Scheme, error) {
	scheme, err := metrics.NewScheme()
	if err != nil {
		return group{}, nil, fmt.Errorf("build scheme of %s: %w", v1beta1.GroupName, err)
	}
	r := metrics.New(metrics.Config{Informers: s.factory, Agent: s.agent, Alive: s.cfg.Alive, Logger: s.cfg.Logger})
	return group{v1beta1.GroupName, []version{{v1beta1.SchemeGroupVersion.Version, r}}}, scheme, nil
}

func (s *Server) agent(ctx context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if s.cfg.Kubelet == nil {
		return nil, nil, errors.New("this peer has no way to the agents of nodes")
	}
	return s.cfg.Kubelet(ctx, node)
}

// metricsReader lets those who may view a namespace see what its pods use, as
// metrics-server's role does: it is aggregated to view, edit and admin.
func metricsReader() rbacv1.ClusterRole {
	aggregate := "rbac.authorization.k8s.io/aggregate-to-"
	return rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "system:aggregated-metrics-reader",
			Labels: map[string]string{aggregate + "view": "true", aggregate + "edit": "true", aggregate + "admin": "true"},
		},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1beta1.GroupName}, Resources: []string{"nodes", "pods"}, Verbs: []string{"get", "list", "watch"}}},
	}
}
