package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/rundigitalplatform/rookery/raftstore"
)

const widgetsPath = "/apis/example.com/v1/namespaces/default/widgets"

func field(t *testing.T, u *unstructured.Unstructured, path ...string) any {
	t.Helper()
	v, _, err := unstructured.NestedFieldNoCopy(u.Object, path...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCustomResources(t *testing.T) {
	store := raftstore.NewMemory()
	c := startCustom(t, store)
	c.lead(t)
	began := time.Now()
	c.define(t, widgets)
	all := c.widgets("v1")
	if _, err := all.Create(t.Context(), aWidget(t, "first", "{size: small}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	soon(t, "from a definition to its first object", began)

	t.Run("defaults and pruning", func(t *testing.T) {
		got, err := all.Create(t.Context(), aWidget(t, "defaults", "{size: big, unknown: 1, free: {any: thing}}"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if field(t, got, "spec", "replicas") != int64(1) || field(t, got, "spec", "unknown") != nil || field(t, got, "spec", "free", "any") != "thing" {
			t.Errorf("spec %v", got.Object["spec"])
		}
	})
	t.Run("field validation", func(t *testing.T) {
		unknown := `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"fields"},"spec":{"size":"big","unknown":1}}`
		json := "Content-Type: application/json"
		if a := c.do(t, "POST", widgetsPath+"?fieldValidation=Strict", unknown, json); a.code != http.StatusBadRequest || !strings.Contains(string(a.body), `unknown field \"spec.unknown\"`) {
			t.Errorf("strict: %d %s", a.code, a.body)
		}
		if a := c.do(t, "POST", widgetsPath+"?fieldValidation=Warn", unknown, json); a.code != http.StatusCreated || !strings.Contains(a.header.Get("Warning"), "spec.unknown") {
			t.Errorf("warn: %d, warning %q", a.code, a.header.Get("Warning"))
		}
	})
	t.Run("schema and rules", func(t *testing.T) {
		for name, spec := range map[string]string{"enum": "{size: huge}", "required": "{}", "type": "{size: small, replicas: many}", "rule": "{size: small, replicas: 6}"} {
			_, err := all.Create(t.Context(), aWidget(t, name, spec), metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				t.Errorf("%s: %v, want 422", name, err)
			}
			if name == "rule" && !strings.Contains(fmt.Sprint(err), "more replicas than allowed") {
				t.Errorf("rule: %v", err)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		u, err := all.Get(t.Context(), "first", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		u.Object["status"] = map[string]any{"phase": "Ready"}
		u.Object["spec"].(map[string]any)["size"] = "big"
		got, err := all.UpdateStatus(t.Context(), u, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if field(t, got, "status", "phase") != "Ready" || field(t, got, "spec", "size") != "small" || got.GetGeneration() != 1 {
			t.Errorf("after a status: %v", got.Object)
		}
		got.Object["spec"].(map[string]any)["note"] = "changed"
		got.Object["status"] = map[string]any{"phase": "Gone"}
		if got, err = all.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if field(t, got, "status", "phase") != "Ready" || got.GetGeneration() != 2 {
			t.Errorf("after an update: %v", got.Object)
		}
	})
	t.Run("scale", func(t *testing.T) {
		patch := `{"spec":{"replicas":3}}`
		got, err := all.Patch(t.Context(), "first", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "scale")
		if err != nil || got.GetKind() != "Scale" || field(t, got, "spec", "replicas") != int64(3) {
			t.Fatalf("%v, %v", got, err)
		}
		u, err := all.Get(t.Context(), "first", metav1.GetOptions{})
		if err != nil || field(t, u, "spec", "replicas") != int64(3) {
			t.Errorf("%v, %v", u, err)
		}
		if _, err := all.Patch(t.Context(), "first", types.MergePatchType, []byte(`{"spec":{"replicas":9}}`), metav1.PatchOptions{}, "scale"); !apierrors.IsInvalid(err) {
			t.Errorf("scaled against the rule: %v", err)
		}
	})
	t.Run("table", func(t *testing.T) {
		table := c.do(t, "GET", widgetsPath+"/first", "", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io").json(t)
		cells := table["rows"].([]any)[0].(map[string]any)["cells"].([]any)
		if fmt.Sprint(cells) != "[first small 3]" {
			t.Errorf("cells %v", cells)
		}
	})
	t.Run("selectors", func(t *testing.T) {
		list, err := all.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.size=small"})
		if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "first" {
			t.Errorf("%v, %v", list, err)
		}
		if _, err := all.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.note=x"}); !apierrors.IsBadRequest(err) {
			t.Errorf("a field that cannot be selected: %v", err)
		}
	})
	t.Run("patches", func(t *testing.T) { patches(t, c) })
	t.Run("server-side apply", func(t *testing.T) { serverSideApply(t, c) })
	t.Run("pages", func(t *testing.T) { pages(t, c) })
	t.Run("watch", func(t *testing.T) { watched(t, c, store) })
	t.Run("deletion with finalizers", func(t *testing.T) { finalized(t, c) })
	t.Run("ratcheting", func(t *testing.T) { ratcheting(t, c) })
}

func patches(t *testing.T, c *custom) {
	all := c.widgets("v1")
	for kind, patch := range map[types.PatchType]string{
		types.JSONPatchType:  `[{"op":"replace","path":"/spec/note","value":"json"}]`,
		types.MergePatchType: `{"spec":{"note":"merge"}}`,
	} {
		got, err := all.Patch(t.Context(), "first", kind, []byte(patch), metav1.PatchOptions{})
		if err != nil || !strings.Contains(patch, field(t, got, "spec", "note").(string)) {
			t.Errorf("%s: %v, %v", kind, got, err)
		}
	}
	if _, err := all.Patch(t.Context(), "first", types.StrategicMergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
		t.Errorf("strategic merge patch: %v, want 415", err)
	}
}

// A list with keys is merged by its definition's own schema.
func serverSideApply(t *testing.T, c *custom) {
	all := c.widgets("v1")
	apply := func(manager, spec string, force bool) (*unstructured.Unstructured, error) {
		return all.Apply(t.Context(), "applied", aWidget(t, "applied", spec), metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	if _, err := apply("one", "{size: big, replicas: 1, parts: [{name: a, weight: 1}]}", false); err != nil {
		t.Fatal(err)
	}
	got, err := apply("two", "{parts: [{name: b, weight: 2}]}", false)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(field(t, got, "spec", "parts").([]any)); n != 2 {
		t.Errorf("%d parts after two managers applied one each", n)
	}
	if _, err := apply("two", "{parts: [{name: a, weight: 7}]}", false); !apierrors.IsConflict(err) {
		t.Errorf("apply what another manages: %v, want a conflict", err)
	}
	if got, err = apply("two", "{parts: [{name: a, weight: 7}]}", true); err != nil {
		t.Fatal(err)
	}
	if parts := field(t, got, "spec", "parts").([]any); len(parts) != 1 || parts[0].(map[string]any)["weight"] != int64(7) {
		t.Errorf("parts %v", parts)
	}
	scale := parse(t, "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: applied}, spec: {replicas: 2}}")
	if _, err := all.Apply(t.Context(), "applied", scale, metav1.ApplyOptions{FieldManager: "three"}, "scale"); !apierrors.IsConflict(err) {
		t.Errorf("apply a scale that another manages: %v, want a conflict", err)
	}
}

func pages(t *testing.T, c *custom) {
	all := c.widgets("v1")
	for i := range 5 {
		u := aWidget(t, fmt.Sprintf("page-%d", i), "{size: big}")
		u.SetLabels(map[string]string{"page": "yes"})
		if _, err := all.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	opts := metav1.ListOptions{LabelSelector: "page=yes", Limit: 2}
	for {
		list, err := all.List(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list.Items {
			names = append(names, u.GetName())
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			break
		}
	}
	if want := "[page-0 page-1 page-2 page-3 page-4]"; fmt.Sprint(names) != want {
		t.Errorf("%v, want %s", names, want)
	}
	if err := all.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "page=yes"}); err != nil {
		t.Fatal(err)
	}
	if list, err := all.List(t.Context(), metav1.ListOptions{LabelSelector: "page=yes"}); err != nil || len(list.Items) != 0 {
		t.Errorf("%d left, %v", len(list.Items), err)
	}
}

func watched(t *testing.T, c *custom, store raftstore.Store) {
	all := c.widgets("v1")
	list, err := all.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := all.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), AllowWatchBookmarks: true, TimeoutSeconds: ptr(int64(3))})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := all.Create(t.Context(), aWidget(t, "seen", "{size: big}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Patch(t.Context(), "seen", types.MergePatchType, []byte(`{"spec":{"size":"small"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := all.Delete(t.Context(), "seen", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for e := range w.ResultChan() {
		seen = append(seen, string(e.Type))
		if u := e.Object.(*unstructured.Unstructured); e.Type == watch.Bookmark && u.GetResourceVersion() == list.GetResourceVersion() {
			t.Errorf("bookmark at the revision of the list")
		}
	}
	if got := fmt.Sprint(seen); !strings.HasPrefix(got, "[ADDED MODIFIED DELETED BOOKMARK") {
		t.Errorf("events %v", got)
	}
	// The history is bounded: who comes with too old a revision has to list again.
	for i := 0; store.CompactRevision() == 0 && i < 100000; i++ {
		op := raftstore.Op{Key: "/test/history", If: raftstore.Any, Kind: raftstore.Put, Value: []byte(fmt.Sprint(i))}
		if _, err := store.Txn(t.Context(), raftstore.Txn{op}); err != nil {
			t.Fatal(err)
		}
	}
	old, err := all.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Stop()
	if e := <-old.ResultChan(); e.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
		t.Errorf("watch from an old revision: %v %v", e.Type, e.Object)
	}
}

func finalized(t *testing.T, c *custom) {
	all := c.widgets("v1")
	u := aWidget(t, "held", "{size: big}")
	u.SetFinalizers([]string{"example.com/hold"})
	if _, err := all.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := all.Delete(t.Context(), "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := all.Get(t.Context(), "held", metav1.GetOptions{}); err != nil || got.GetDeletionTimestamp() == nil {
		t.Fatalf("held: %v, %v", got, err)
	}
	if _, err := all.Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Get(t.Context(), "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("let go: %v, want 404", err)
	}
}

// What was valid and is left alone stays valid when the schema becomes stricter.
func ratcheting(t *testing.T, c *custom) {
	all := c.widgets("v1")
	if _, err := all.Create(t.Context(), aWidget(t, "old", "{size: big, note: a long note}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := all.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	c.change(t, "widgets.example.com", func(crd *definitionsv1.CustomResourceDefinition) {
		spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		note := spec.Properties["note"]
		note.MaxLength = ptr(int64(4))
		note.XValidations = definitionsv1.ValidationRules{{Rule: "self != 'evil'"}}
		spec.Properties["note"] = note
	})
	eventually(t, "the new schema counts", func() bool {
		u := aWidget(t, "new", "{size: big, note: a long note}")
		_, err := all.Create(context.Background(), u, metav1.CreateOptions{DryRun: []string{"All"}})
		return apierrors.IsInvalid(err)
	})
	// Who watches with the old schema begins anew.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range w.ResultChan() {
		}
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("a watch goes on with the old schema")
	}
	if _, err := all.Patch(t.Context(), "old", types.MergePatchType, []byte(`{"spec":{"size":"small"}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("change beside a note that is too long by now: %v", err)
	}
	if _, err := all.Patch(t.Context(), "old", types.MergePatchType, []byte(`{"spec":{"note":"another"}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("change to a note that is too long: %v, want 422", err)
	}
}
