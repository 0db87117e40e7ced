package controller_test

import (
	"fmt"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	definitions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
)

// Controllers that run already learn of a kind that is defined now: quotas count its
// objects, the garbage collector follows their owners, a namespace takes them with it.
func TestCustomResources(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	stop := c.term()
	defer stop()
	cfg := c.server.ClientConfig("admin", "system:masters")
	kinds, err := definitions.NewForConfig(cfg)
	must(t, err)
	objects, err := dynamic.NewForConfig(cfg)
	must(t, err)
	_, err = c.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(t, err)
	// One that runs already, and has asked which kinds there are.
	scalers := c.admin.AutoscalingV2().HorizontalPodAutoscalers("shop")
	for name, kind := range map[string]string{"early": "Nothing", "things": "Thing"} {
		_, err = scalers.Create(ctx, &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "example.com/v1", Kind: kind, Name: "owner"}, MaxReplicas: 3,
			},
		}, metav1.CreateOptions{})
		must(t, err)
	}
	able := func(name string) corev1.ConditionStatus {
		h, err := scalers.Get(ctx, name, metav1.GetOptions{})
		must(t, err)
		return condition(h, autoscalingv2.AbleToScale).Status
	}
	c.eventually("autoscalers do not know these kinds", func() bool { return able("early") == corev1.ConditionFalse && able("things") == corev1.ConditionFalse })
	_, err = kinds.CustomResourceDefinitions().Create(ctx, &definitionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things.example.com"},
		Spec: definitionsv1.CustomResourceDefinitionSpec{
			Group: "example.com", Scope: definitionsv1.NamespaceScoped, Names: definitionsv1.CustomResourceDefinitionNames{Plural: "things", Kind: "Thing"},
			Versions: []definitionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Subresources: &definitionsv1.CustomResourceSubresources{Scale: &definitionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas"}},
				Schema:       &definitionsv1.CustomResourceValidation{OpenAPIV3Schema: &definitionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: ptr.To(true)}},
			}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	things := objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "things"}).Namespace("shop")
	create := func(name string) (*unstructured.Unstructured, error) {
		return things.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": name}, "spec": map[string]any{"replicas": int64(1)},
		}}, metav1.CreateOptions{})
	}
	var owner *unstructured.Unstructured
	c.eventually("an object of the new kind", func() bool { owner, err = create("owner"); return err == nil })
	_, err = c.admin.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name: "owned", OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Thing", Name: "owner", UID: owner.GetUID()}},
	}}, metav1.CreateOptions{})
	must(t, err)
	// They look for new kinds twice a minute. A quota that is older than its kind is counted anew every five.
	quotas, n := c.admin.CoreV1().ResourceQuotas("shop"), 0
	within(t, "a quota counts it", 90*time.Second, func() bool {
		n++
		name := fmt.Sprintf("things-%d", n)
		_, err := quotas.Create(ctx, &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/things.example.com": resource.MustParse("2")}},
		}, metav1.CreateOptions{})
		must(t, err)
		time.Sleep(2 * time.Second)
		q, err := quotas.Get(ctx, name, metav1.GetOptions{})
		must(t, err)
		if used := q.Status.Used["count/things.example.com"]; used.Value() == 1 {
			return true
		}
		must(t, quotas.Delete(ctx, name, metav1.DeleteOptions{}))
		return false
	})
	within(t, "an autoscaler finds it", 90*time.Second, func() bool { return able("things") == corev1.ConditionTrue })
	if able("early") != corev1.ConditionFalse {
		t.Error("an autoscaler found a kind that there is not")
	}
	must(t, things.Delete(ctx, "owner", metav1.DeleteOptions{}))
	within(t, "what it owned goes with it", 2*time.Minute, func() bool {
		_, err := c.admin.CoreV1().ConfigMaps("shop").Get(ctx, "owned", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	c.eventually("another object", func() bool { _, err := create("left"); return err == nil })
	must(t, c.admin.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}))
	within(t, "the namespace takes it with it", time.Minute, func() bool {
		_, err := c.admin.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if _, err := things.Get(ctx, "left", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an object outlived its namespace: %v", err)
	}
}

func within(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%s after %v", what, time.Since(began).Round(time.Millisecond))
}
