package controller_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"k8s.io/utils/ptr"
)

// usage plays the agents of all nodes where they are asked what pods use: the pods
// labelled app=busy share a load, all others use nothing.
type usage struct {
	admin kubernetes.Interface
	load  atomic.Int64 // in millicores
}

func (u *usage) agent(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
	return &url.URL{Scheme: "https", Host: node}, u, nil
}

func (u *usage) RoundTrip(r *http.Request) (*http.Response, error) {
	pods, err := u.admin.CoreV1().Pods("").List(r.Context(), metav1.ListOptions{LabelSelector: "app=busy", ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	var list metrics.PodMetricsList
	for _, p := range pods.Items {
		if p.Spec.NodeName != r.URL.Host || p.Status.Phase != corev1.PodRunning {
			continue
		}
		cpu := *resource.NewMilliQuantity(u.load.Load()/int64(len(pods.Items)), resource.DecimalSI)
		list.Items = append(list.Items, metrics.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Timestamp: metav1.Now(), Window: metav1.Duration{Duration: time.Second},
			Containers: []metrics.ContainerMetrics{{Name: "main", Usage: corev1.ResourceList{"cpu": cpu, "memory": resource.MustParse("10Mi")}}},
		})
	}
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(list); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	w.Body = &body
	return w.Result(), nil
}

// TestAutoscaling scales a Deployment by its pods' usage, up under load and down after it.
func TestAutoscaling(t *testing.T) {
	c := newCluster(t)
	defer c.term()()
	ctx := t.Context()
	labels := map[string]string{"app": "busy"}
	_, err := c.admin.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "busy"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "main", Image: "example/web", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m")}},
				}}},
			},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	c.usage.load.Store(1000)
	byCPU := autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: "cpu", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To[int32](50)},
	}}
	c.autoscale("busy", byCPU)
	replicas := func(n int32) func() bool {
		return func() bool {
			d, err := c.admin.AppsV1().Deployments("default").Get(ctx, "busy", metav1.GetOptions{})
			return err == nil && *d.Spec.Replicas == n && d.Status.ReadyReplicas == n
		}
	}
	c.eventually("as many pods as there may be", replicas(5))
	c.eventually("the status says so", func() bool {
		h, err := c.admin.AutoscalingV2().HorizontalPodAutoscalers("default").Get(ctx, "busy", metav1.GetOptions{})
		return err == nil && h.Status.DesiredReplicas == 5 && condition(h, autoscalingv2.ScalingActive).Status == corev1.ConditionTrue &&
			condition(h, autoscalingv2.ScalingLimited).Reason == "TooManyReplicas" && len(h.Status.CurrentMetrics) == 1
	})
	c.usage.load.Store(10)
	c.eventually("one pod", replicas(1))

	// What nobody serves is said.
	for name, metric := range map[string]autoscalingv2.MetricSpec{
		"custom": {Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: "requests"}, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(resource.MustParse("1"))},
		}},
		"external": {Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: "queue"}, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr.To(resource.MustParse("1"))},
		}},
	} {
		must(t, c.admin.AutoscalingV2().HorizontalPodAutoscalers("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
		c.autoscale(name, metric)
		c.eventually(name+" metrics are missing", func() bool {
			h, err := c.admin.AutoscalingV2().HorizontalPodAutoscalers("default").Get(ctx, name, metav1.GetOptions{})
			return err == nil && condition(h, autoscalingv2.ScalingActive).Status == corev1.ConditionFalse &&
				strings.Contains(condition(h, autoscalingv2.ScalingActive).Message, name+" metrics API")
		})
	}
}

// autoscale makes an autoscaler of the Deployment busy, which scales down at once.
func (c *cluster) autoscale(name string, by autoscalingv2.MetricSpec) {
	c.t.Helper()
	_, err := c.admin.AutoscalingV2().HorizontalPodAutoscalers("default").Create(c.t.Context(), &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "busy"},
			MinReplicas:    ptr.To[int32](1), MaxReplicas: 5, Metrics: []autoscalingv2.MetricSpec{by},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](0)}},
		},
	}, metav1.CreateOptions{})
	must(c.t, err)
}

func condition(h *autoscalingv2.HorizontalPodAutoscaler, kind autoscalingv2.HorizontalPodAutoscalerConditionType) autoscalingv2.HorizontalPodAutoscalerCondition {
	for _, c := range h.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return autoscalingv2.HorizontalPodAutoscalerCondition{}
}
