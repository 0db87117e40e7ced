package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// gadgets has two versions, of which v2 is stored; v1 is deprecated.
const gadgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.com}
spec:
  group: example.com
  scope: Cluster
  names: {plural: gadgets, kind: Gadget}
  versions:
  - name: v2
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {length: {type: string}}}}
  - name: v1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {size: {type: string}}}}
`

func (c *custom) gadgets(version string) dynamic.ResourceInterface {
	return c.objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "gadgets"})
}

// serveConversion renames size of v1 to length of v2, and back.
func serveConversion(t *testing.T) *hook {
	return newHook(t, func(w http.ResponseWriter, r *http.Request) {
		var review definitionsv1.ConversionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Errorf("review: %v", err)
			return
		}
		review.Response = &definitionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		for _, raw := range review.Request.Objects {
			var u unstructured.Unstructured
			if err := u.UnmarshalJSON(raw.Raw); err != nil {
				t.Errorf("object: %v", err)
				return
			}
			from, to := "size", "length"
			if strings.HasSuffix(review.Request.DesiredAPIVersion, "/v1") {
				from, to = to, from
			}
			if v, ok := u.Object[from]; ok {
				u.Object[to] = v
				delete(u.Object, from)
			}
			u.SetAPIVersion(review.Request.DesiredAPIVersion)
			review.Response.ConvertedObjects = append(review.Response.ConvertedObjects, runtime.RawExtension{Object: &u})
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Errorf("answer: %v", err)
		}
	})
}

// convertBy makes a webhook at Service hook in namespace default convert gadgets. The Service
// leads to this machine, where the webhook of the test is.
func (c *custom) convertBy(t *testing.T, h *hook) {
	t.Helper()
	port := h.port(t)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "hook"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost", Ports: []corev1.ServicePort{{Port: port}}},
	}
	if _, err := c.admin.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.change(t, "gadgets.example.com", func(crd *definitionsv1.CustomResourceDefinition) {
		crd.Spec.Conversion = &definitionsv1.CustomResourceConversion{Strategy: definitionsv1.WebhookConverter, Webhook: &definitionsv1.WebhookConversion{
			ConversionReviewVersions: []string{"v1"},
			ClientConfig:             &definitionsv1.WebhookClientConfig{CABundle: h.ca, Service: &definitionsv1.ServiceReference{Namespace: "default", Name: "hook", Port: &port}},
		}}
	})
}

func TestVersionsOfCustomResources(t *testing.T) {
	c := startLeader(t)
	c.define(t, gadgets)
	// Without a converter only the version changes.
	if _, err := c.gadgets("v1").Create(t.Context(), parse(t, "{apiVersion: example.com/v1, kind: Gadget, metadata: {name: plain}, size: big}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v2", "v1", "v2"} {
		list, err := c.gadgets(version).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || list.Items[0].GetAPIVersion() != "example.com/"+version || list.Items[0].Object["size"] != "big" {
			t.Errorf("%s: %v, %v", version, list, err)
		}
	}
	if a := c.do(t, "GET", "/apis/example.com/v1/gadgets", ""); !strings.Contains(a.header.Get("Warning"), "example.com/v1 Gadget is deprecated; use example.com/v2 Gadget") {
		t.Errorf("warning %q", a.header.Get("Warning"))
	}

	h := serveConversion(t)
	c.convertBy(t, h)
	eventually(t, "the webhook converts", func() bool {
		u, err := c.gadgets("v1").Get(t.Context(), "plain", metav1.GetOptions{})
		return err == nil && h.calls.Load() > 0 && u.GetAPIVersion() == "example.com/v1"
	})
	for _, name := range []string{"a", "b"} {
		u, err := c.gadgets("v1").Create(t.Context(), parse(t, "{apiVersion: example.com/v1, kind: Gadget, metadata: {name: "+name+"}, size: small}"), metav1.CreateOptions{})
		if err != nil || u.Object["size"] != "small" {
			t.Fatalf("%v, %v", u, err)
		}
	}
	u, err := c.gadgets("v2").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || u.Object["length"] != "small" || u.Object["size"] != nil {
		t.Errorf("stored as v2: %v, %v", u, err)
	}
	w, err := c.gadgets("v1").Watch(t.Context(), metav1.ListOptions{ResourceVersion: u.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	u.Object["length"] = "big"
	if _, err := c.gadgets("v2").Update(t.Context(), u, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for e := range w.ResultChan() {
		if got := e.Object.(*unstructured.Unstructured); got.GetName() == "a" {
			if got.Object["size"] != "big" || got.GetAPIVersion() != "example.com/v1" {
				t.Errorf("watched as v1: %v", got.Object)
			}
			break
		}
	}
	// What was converted once is not converted again.
	if _, err := c.gadgets("v1").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	before := h.calls.Load()
	list, err := c.gadgets("v1").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 3 || h.calls.Load() != before {
		t.Errorf("%d listed with %d calls, %v", len(list.Items), h.calls.Load()-before, err)
	}
	h.Close()
	if _, err := c.gadgets("v1").Create(t.Context(), parse(t, "{apiVersion: example.com/v1, kind: Gadget, metadata: {name: c}, size: small}"), metav1.CreateOptions{}); err == nil ||
		!strings.Contains(err.Error(), "conversion webhook") {
		t.Errorf("create while the webhook is down: %v", err)
	}
	if _, err := c.gadgets("v2").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list the stored version while the webhook is down: %v", err)
	}
}
