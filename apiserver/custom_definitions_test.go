package apiserver_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// aDefinition is the least that a definition can be.
func aDefinition(plural, group, kind string) string {
	return fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]s.%[2]s}
spec:
  group: %[2]s
  scope: Namespaced
  names: {plural: %[1]s, kind: %[3]s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, plural, group, kind)
}

func TestDefinitions(t *testing.T) {
	c := startLeader(t)
	t.Run("names that are taken", func(t *testing.T) {
		c.define(t, aDefinition("firsts", "names.example.com", "Taken"))
		second := c.mustCreate(t, aDefinition("seconds", "names.example.com", "Taken"))
		eventually(t, "the conflict is told", func() bool {
			crd, err := c.definitions.Get(t.Context(), second.Name, metav1.GetOptions{})
			cond := apihelpers.FindCRDCondition(crd, definitionsv1.NamesAccepted)
			return err == nil && cond != nil && cond.Status == definitionsv1.ConditionFalse && strings.HasSuffix(cond.Reason, "KindConflict")
		})
		if a := c.do(t, "GET", "/apis/names.example.com/v1/seconds", ""); a.code != http.StatusNotFound {
			t.Errorf("objects of a kind whose name is taken: %d", a.code)
		}
		if err := c.definitions.Delete(t.Context(), "firsts.names.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.awaitCondition(t, second.Name, definitionsv1.Established)
	})
	t.Run("server-side apply of a definition", func(t *testing.T) {
		manifest := aDefinition("applies", "example.com", "Applied")
		for _, label := range []string{"one", "two"} {
			body := strings.Replace(manifest, "metadata: {", "metadata: {labels: {by: "+label+"}, ", 1)
			a := c.do(t, "PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/applies.example.com?fieldManager="+label+"&force=true", body, "Content-Type: "+string(types.ApplyPatchType))
			if a.code != http.StatusCreated && a.code != http.StatusOK {
				t.Fatalf("%d %s", a.code, a.body)
			}
		}
		c.awaitCondition(t, "applies.example.com", definitionsv1.Established)
		crd, err := c.definitions.Get(t.Context(), "applies.example.com", metav1.GetOptions{})
		if err != nil || crd.Labels["by"] != "two" {
			t.Fatalf("%v, %v", crd, err)
		}
		managers := []string{}
		for _, m := range crd.ManagedFields {
			managers = append(managers, m.Manager)
		}
		if !slices.Contains(managers, "one") || !slices.Contains(managers, "two") {
			t.Errorf("managers %v: a status took them away", managers)
		}
	})
	t.Run("deleted with its objects", func(t *testing.T) { deletedWithObjects(t, c) })
	t.Run("discovery", func(t *testing.T) { discovered(t, c) })
	t.Run("access and admission", func(t *testing.T) { guarded(t, c) })
}

func deletedWithObjects(t *testing.T, c *custom) {
	c.define(t, widgets)
	all := c.widgets("v1")
	held := aWidget(t, "held", "{size: big}")
	held.SetFinalizers([]string{"example.com/hold"})
	for _, u := range []string{"a", "b"} {
		if _, err := all.Create(t.Context(), aWidget(t, u, "{size: big}"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := all.Create(t.Context(), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.definitions.Delete(t.Context(), "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.awaitCondition(t, "widgets.example.com", definitionsv1.Terminating)
	eventually(t, "objects are deleted, but for the one that is held", func() bool {
		list, err := all.List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 1 && list.Items[0].GetName() == "held"
	})
	if _, err := all.Create(t.Context(), aWidget(t, "late", "{size: big}"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsMethodNotSupported(err) {
		t.Errorf("create while the definition is terminating: %v", err)
	}
	if _, err := all.Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition is gone", func() bool {
		_, err := c.definitions.Get(t.Context(), "widgets.example.com", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if a := c.do(t, "GET", widgetsPath, ""); a.code != http.StatusNotFound {
		t.Errorf("objects of a definition that is gone: %d", a.code)
	}
	// A new definition of that name has none of the old objects.
	c.define(t, widgets)
	if list, err := all.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("%d old objects, %v", len(list.Items), err)
	}
}

func discovered(t *testing.T, c *custom) {
	c.define(t, gadgets) // beside widgets
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	groups := func(accept string) []string {
		var out []string
		for _, g := range c.do(t, "GET", "/apis", "", "Accept: "+accept).json(t) {
			if list, ok := g.([]any); ok {
				for _, g := range list {
					g := g.(map[string]any)
					if meta, ok := g["metadata"].(map[string]any); ok {
						g = meta
					}
					out = append(out, fmt.Sprint(g["name"]))
				}
			}
		}
		return out
	}
	for _, accept := range []string{aggregated, "application/json"} {
		got := groups(accept)
		if at := slices.Index(got, "example.com"); at < 0 || slices.Index(got, "apps") > at {
			t.Errorf("%s: %v, want example.com after the built-in groups", accept, got)
		}
	}
	_, lists, err := c.admin.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, l := range lists {
		for _, r := range l.APIResources {
			found[l.GroupVersion] = append(found[l.GroupVersion], r.Name)
		}
	}
	for _, name := range []string{"widgets", "widgets/status", "widgets/scale", "gadgets"} {
		if !slices.Contains(found["example.com/v1"], name) {
			t.Errorf("%s is not among %v", name, found["example.com/v1"])
		}
	}
	if got := found["example.com/v2"]; fmt.Sprint(got) != "[gadgets]" {
		t.Errorf("version 2 has %v", got)
	}
	g := c.do(t, "GET", "/apis/example.com", "").json(t)
	if v := g["preferredVersion"].(map[string]any)["version"]; v != "v2" {
		t.Errorf("preferred version %v", v)
	}
	one := c.do(t, "GET", "/apis/example.com/v1", "").json(t)
	for _, r := range one["resources"].([]any) {
		if r := r.(map[string]any); r["name"] == "widgets" && (fmt.Sprint(r["shortNames"]) != "[wd]" || r["namespaced"] != true || r["kind"] != "Widget") {
			t.Errorf("widgets: %v", r)
		}
	}
	if err := c.definitions.Delete(t.Context(), "gadgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "version 2 is gone", func() bool { return c.do(t, "GET", "/apis/example.com/v2", "").code == http.StatusNotFound })
	raw := string(c.do(t, "GET", "/apis", "", "Accept: "+aggregated).body)
	if strings.Contains(raw, "gadgets") || !strings.Contains(raw, "widgets") {
		t.Error("the list of groups does not tell of widgets alone")
	}
}

func guarded(t *testing.T, c *custom) {
	ctx := t.Context()
	user := func(name string) dynamic.ResourceInterface {
		objects, err := dynamic.NewForConfig(c.ClientConfig(name))
		if err != nil {
			t.Fatal(err)
		}
		return objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}).Namespace("default")
	}
	if _, err := user("jane").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list without a role: %v", err)
	}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "widgets"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"example.com"}, Resources: []string{"widgets"}, Verbs: []string{"list"}}}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "jane"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "widgets"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"}},
	}
	if _, err := c.admin.RbacV1().Roles("default").Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.admin.RbacV1().RoleBindings("default").Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the role counts", func() bool { _, err := user("jane").List(ctx, metav1.ListOptions{}); return err == nil })
	if _, err := user("jane").Create(ctx, aWidget(t, "hers", "{size: big}"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("create with a role to list: %v", err)
	}

	nowhere := c.objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}).Namespace("nowhere")
	if _, err := nowhere.Create(ctx, aWidget(t, "lost", "{size: big}"), metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("create in no namespace: %v", err)
	}

	h := serveHook(t, func(_ *admissionv1.AdmissionRequest, r *admissionv1.AdmissionResponse) {
		r.Allowed, r.Result = false, &metav1.Status{Message: "no widgets today"}
	})
	if _, err := c.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, validating("widgets", h), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	denied := aWidget(t, "denied", "{size: big}")
	denied.SetLabels(map[string]string{"case": "widgets"})
	if _, err := c.widgets("v1").Create(ctx, denied, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "no widgets today") {
		t.Errorf("create against a webhook: %v", err)
	}

	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "two"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/widgets.example.com": resource.MustParse("1")}}}
	made, err := c.admin.CoreV1().ResourceQuotas("default").Create(ctx, quota, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status.Hard, made.Status.Used = made.Spec.Hard, corev1.ResourceList{"count/widgets.example.com": resource.MustParse("0")} // no controller runs here
	if _, err := c.admin.CoreV1().ResourceQuotas("default").UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	eventually(t, "the quota is used up", func() bool {
		n++
		_, err := c.widgets("v1").Create(ctx, aWidget(t, fmt.Sprintf("counted-%d", n), "{size: big}"), metav1.CreateOptions{})
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota")
	})
	if err := c.admin.CoreV1().ResourceQuotas("default").Delete(ctx, "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A leader that ends takes nothing with it that the next one needs.
func TestDefinitionsOverTerms(t *testing.T) {
	c := startCustom(t, raftstore.NewMemory())
	for i := range 3 {
		end := c.lead(t)
		c.define(t, aDefinition(fmt.Sprintf("term%ds", i), "example.com", fmt.Sprintf("Term%d", i)))
		end()
	}
	c.mustCreate(t, aDefinition("betweens", "example.com", "Between"))
	time.Sleep(50 * time.Millisecond)
	if crd, err := c.definitions.Get(t.Context(), "betweens.example.com", metav1.GetOptions{}); err != nil || len(crd.Status.Conditions) != 0 {
		t.Errorf("without a leader: %v, %v", crd.Status, err)
	}
	c.lead(t)
	c.awaitCondition(t, "betweens.example.com", definitionsv1.Established)
}
