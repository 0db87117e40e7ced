package apifuzz

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// tidy deletes what a round has made, so that the next one is not refused by its
// quotas, policies and webhooks, and memory can be compared.
func (w *world) tidy(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	// First what could refuse the rest.
	hooks := w.admin.AdmissionregistrationV1()
	all := metav1.ListOptions{}
	for _, err := range []error{
		hooks.ValidatingWebhookConfigurations().DeleteCollection(ctx, metav1.DeleteOptions{}, all), hooks.MutatingWebhookConfigurations().DeleteCollection(ctx, metav1.DeleteOptions{}, all),
		hooks.ValidatingAdmissionPolicyBindings().DeleteCollection(ctx, metav1.DeleteOptions{}, all), hooks.MutatingAdmissionPolicyBindings().DeleteCollection(ctx, metav1.DeleteOptions{}, all),
		hooks.ValidatingAdmissionPolicies().DeleteCollection(ctx, metav1.DeleteOptions{}, all), hooks.MutatingAdmissionPolicies().DeleteCollection(ctx, metav1.DeleteOptions{}, all),
	} {
		if err != nil {
			t.Errorf("delete hooks: %v", err)
		}
	}
	objects, err := dynamic.NewForConfig(w.server.ClientConfig("admin", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range w.discover(t).endpoints {
		if !slices.Contains(e.verbs, "deletecollection") || e.group.Group == "apiregistration.k8s.io" || e.resource == "customresourcedefinitions" {
			continue
		}
		of := objects.Resource(e.group.WithResource(e.resource))
		list, err := of.List(ctx, all)
		if err != nil {
			t.Errorf("list %s: %v", e.resource, err)
			continue
		}
		for _, o := range list.Items {
			if made := strings.HasPrefix(o.GetName(), "f") || strings.HasPrefix(o.GetName(), "g"); !made && o.GetNamespace() == "" || o.GetNamespace() == "kube-system" {
				continue // ours
			}
			one := dynamic.ResourceInterface(of)
			if e.namespaced {
				one = of.Namespace(o.GetNamespace())
			}
			if len(o.GetFinalizers()) > 0 {
				_, err := one.Patch(ctx, o.GetName(), types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{FieldManager: "tidy"})
				if err != nil && !errors.IsNotFound(err) {
					t.Errorf("finalize %s %s/%s: %v", e.resource, o.GetNamespace(), o.GetName(), err)
				}
			}
			if err := one.Delete(ctx, o.GetName(), *metav1.NewDeleteOptions(0)); err != nil && !errors.IsNotFound(err) {
				t.Errorf("delete %s %s/%s: %v", e.resource, o.GetNamespace(), o.GetName(), err)
			}
		}
	}
	w.namespaces(t)
	if err := w.server.Bootstrap(ctx); err != nil { // requests may have deleted roles
		t.Error(err)
	}
	w.furnish(t)
	w.admit(t)
}

// namespaces plays the controller that lets deleted ones go.
func (w *world) namespaces(t *testing.T) {
	t.Helper()
	list, err := w.admin.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range list.Items {
		if !strings.HasPrefix(ns.Name, "f") && !strings.HasPrefix(ns.Name, "g") {
			continue
		}
		if err := w.admin.CoreV1().Namespaces().Delete(t.Context(), ns.Name, metav1.DeleteOptions{}); err != nil && !errors.IsNotFound(err) && !errors.IsConflict(err) {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
		ns.Spec.Finalizers, ns.ResourceVersion = nil, ""
		if _, err := w.admin.CoreV1().Namespaces().Finalize(t.Context(), &ns, metav1.UpdateOptions{}); err != nil && !errors.IsNotFound(err) {
			t.Errorf("finalize namespace %s: %v", ns.Name, err)
		}
	}
}

// idle waits until no request is left in the server.
func (w *world) idle(t *testing.T) {
	t.Helper()
	for _, c := range w.callers {
		c.first.CloseIdleConnections()
		c.second.CloseIdleConnections()
	}
	buf := make([]byte, 16<<20)
	var left []string
	deadline := time.Now().Add(30 * time.Second)
	for left = serving(buf); len(left) > 0 && time.Now().Before(deadline); left = serving(buf) {
		time.Sleep(100 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("%d requests did not end:\n%s", len(left), left[0])
	}
}

// serving lists the stacks that are in the middle of a request from the network.
func serving(buf []byte) (stacks []string) {
	for _, s := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(s, "withPanicRecovery") && !strings.Contains(s, "inProcess") {
			stacks = append(stacks, s)
		}
	}
	return stacks
}

// serves checks that after all this the server does its work.
func (w *world) serves(t *testing.T) {
	t.Helper()
	maps := w.admin.CoreV1().ConfigMaps("default")
	watch, err := maps.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=after"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rafttest.Eventually(t, "the watch tells", func() bool { return len(watch.ResultChan()) > 0 || (<-watch.ResultChan()).Type == "ADDED" })
	for name := range w.callers {
		if a := w.ask(call{caller: name, method: "GET", target: "/livez", patience: 10 * time.Second}); a.code != 200 && name != "impostor" {
			t.Errorf("%s asks /livez: %d %v", name, a.code, a.err)
		}
	}
	if err := w.server.Ready(); err != nil {
		t.Error(err)
	}
}
