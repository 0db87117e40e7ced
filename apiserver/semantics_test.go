package apiserver_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// semantics are what clients rely on beyond create, get and delete.
type semantics struct {
	*peer
	ctx context.Context
}

func TestSemantics(t *testing.T) {
	s := semantics{start(t, raftstore.NewMemory()), t.Context()}
	t.Run("generated names", s.generatedNames)
	t.Run("preconditions", s.preconditions)
	t.Run("finalizers", s.finalizers)
	t.Run("delete collection", s.deleteCollection)
	t.Run("dry run", s.dryRun)
	t.Run("field validation", s.fieldValidation)
	t.Run("patches", s.patches)
	t.Run("apply: conflict, force, owners", s.apply)
	t.Run("pages of one revision", s.pages)
	t.Run("resource versions", s.resourceVersions)
	t.Run("an informer by a list that streams", s.watchList)
}

func (s semantics) generatedNames(t *testing.T) {
	seen := map[string]bool{}
	for range 5 {
		m := configMap("", "1")
		m.GenerateName = "gen-"
		made, err := s.admin.CoreV1().ConfigMaps("default").Create(s.ctx, m, metav1.CreateOptions{})
		if err != nil || !strings.HasPrefix(made.Name, "gen-") || seen[made.Name] {
			t.Fatalf("made %v, %v", made, err)
		}
		seen[made.Name] = true
	}
}

func (s semantics) preconditions(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("default")
	made := must(maps.Create(s.ctx, configMap("pre", "1"), metav1.CreateOptions{}))(t)
	changed := must(maps.Patch(s.ctx, "pre", types.MergePatchType, []byte(`{"data":{"k":"2"}}`), metav1.PatchOptions{}))(t)
	for name, p := range map[string]metav1.Preconditions{
		"another object":   {UID: ptr(types.UID("no"))},
		"an older version": {ResourceVersion: &made.ResourceVersion},
	} {
		if err := maps.Delete(s.ctx, "pre", metav1.DeleteOptions{Preconditions: &p}); !apierrors.IsConflict(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := maps.Delete(s.ctx, "pre", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &made.UID, ResourceVersion: &changed.ResourceVersion}}); err != nil {
		t.Error(err)
	}
}

func (s semantics) finalizers(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("default")
	m := configMap("held", "1")
	m.Finalizers = []string{"example.com/hold"}
	must(maps.Create(s.ctx, m, metav1.CreateOptions{}))(t)
	if err := maps.Delete(s.ctx, "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	held := must(maps.Get(s.ctx, "held", metav1.GetOptions{}))(t)
	if held.DeletionTimestamp == nil {
		t.Error("it is not being deleted")
	}
	held.Finalizers = append(held.Finalizers, "example.com/more")
	if _, err := maps.Update(s.ctx, held, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a finalizer more on what is being deleted: %v", err)
	}
	must(maps.Patch(s.ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}))(t)
	if _, err := maps.Get(s.ctx, "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the last finalizer: %v", err)
	}
}

func (s semantics) deleteCollection(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("kube-public")
	for i := range 5 {
		m := configMap(fmt.Sprint("many-", i), "1")
		m.Labels = map[string]string{"odd": fmt.Sprint(i%2 == 1)}
		must(maps.Create(s.ctx, m, metav1.CreateOptions{}))(t)
	}
	if err := maps.DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "odd=true"}); err != nil {
		t.Fatal(err)
	}
	if left := must(maps.List(s.ctx, metav1.ListOptions{LabelSelector: "odd"}))(t); len(left.Items) != 3 {
		t.Errorf("%d are left, want 3", len(left.Items))
	}
}

// dryRun leaves neither objects nor what goes with them.
func (s semantics) dryRun(t *testing.T) {
	dry := []string{metav1.DryRunAll}
	before := must(s.admin.CoreV1().ConfigMaps("default").List(s.ctx, metav1.ListOptions{}))(t).ResourceVersion
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "dry"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "10.43.7.7", Ports: []corev1.ServicePort{{Port: 80, NodePort: 30777}}},
	}
	services := s.admin.CoreV1().Services("default")
	for range 2 { // a claim that was kept would refuse the second
		if _, err := services.Create(s.ctx, service.DeepCopy(), metav1.CreateOptions{DryRun: dry}); err != nil {
			t.Fatal(err)
		}
	}
	if after := must(s.admin.CoreV1().ConfigMaps("default").List(s.ctx, metav1.ListOptions{}))(t).ResourceVersion; after != before {
		t.Errorf("the store went from %s to %s", before, after)
	}
	made := must(services.Create(s.ctx, service, metav1.CreateOptions{}))(t)
	made.Labels = map[string]string{"a": "b"}
	if got := must(services.Update(s.ctx, made, metav1.UpdateOptions{DryRun: dry}))(t); got.Labels["a"] != "b" {
		t.Error("a dry update does not show what it would do")
	}
	must(services.Patch(s.ctx, "dry", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{DryRun: dry}))(t)
	if err := services.Delete(s.ctx, "dry", metav1.DeleteOptions{DryRun: dry}); err != nil {
		t.Error(err)
	}
	if got := must(services.Get(s.ctx, "dry", metav1.GetOptions{}))(t); got.ResourceVersion != made.ResourceVersion || len(got.Labels) > 0 {
		t.Errorf("something was stored: %v", got.ObjectMeta)
	}
}

func (s semantics) fieldValidation(t *testing.T) {
	for _, tt := range []struct{ name, body, says string }{
		{"an unknown field", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"v"},"dta":{}}`, `unknown field "dta"`},
		{"a field twice", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"v"},"data":{"a":"1"},"data":{"a":"2"}}`, `duplicate field "data"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			create := func(validation string) error {
				return s.admin.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").
					Param("fieldValidation", validation).Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body([]byte(tt.body)).Do(s.ctx).Error()
			}
			if err := create("Strict"); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("strict: %v", err)
			}
			for _, lenient := range []string{"Warn", "Ignore"} {
				if err := create(lenient); err != nil {
					t.Errorf("%s: %v", lenient, err)
				}
			}
			if w := s.warned(t, tt.body); !strings.Contains(w, tt.says) {
				t.Errorf("warned of %q", w)
			}
		})
	}
}

// warned returns the warnings with which a config map is created, for show.
func (s semantics) warned(t *testing.T, body string) string {
	t.Helper()
	heard := &warnings{}
	cfg := s.ClientConfig("admin", "system:masters")
	cfg.WarningHandler = heard
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = c.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").
		Param("fieldValidation", "Warn").Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(s.ctx).Error()
	if err != nil {
		t.Fatal(err)
	}
	heard.mu.Lock()
	defer heard.mu.Unlock()
	return strings.Join(heard.texts, "\n")
}

func (s semantics) patches(t *testing.T) {
	pods := s.admin.CoreV1().Pods("default")
	must(pods.Create(s.ctx, aPod("patched"), metav1.CreateOptions{}))(t)
	for _, tt := range []struct {
		form  types.PatchType
		patch string
		image string
		fails func(error) bool
	}{
		{types.MergePatchType, `{"metadata":{"labels":{"app":null}}}`, "localhost/hello:1", nil},
		{types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"c","image":"two"}]}}`, "two", nil},
		{types.JSONPatchType, `[{"op":"test","path":"/spec/containers/0/image","value":"two"},{"op":"replace","path":"/spec/containers/0/image","value":"three"}]`, "three", nil},
		{types.JSONPatchType, `[{"op":"test","path":"/spec/containers/0/image","value":"two"}]`, "three", apierrors.IsInvalid},
		{types.JSONPatchType, `{"op":"nothing"}`, "three", apierrors.IsBadRequest},
		{types.MergePatchType, `{"metadata":{"resourceVersion":"1"},"spec":{"activeDeadlineSeconds":5}}`, "three", apierrors.IsConflict},
	} {
		_, err := pods.Patch(s.ctx, "patched", tt.form, []byte(tt.patch), metav1.PatchOptions{})
		if (err == nil) != (tt.fails == nil) || tt.fails != nil && !tt.fails(err) {
			t.Errorf("%s %s: %v", tt.form, tt.patch, err)
		}
		if got := must(pods.Get(s.ctx, "patched", metav1.GetOptions{}))(t); got.Spec.Containers[0].Image != tt.image {
			t.Errorf("after %s the image is %s, want %s", tt.patch, got.Spec.Containers[0].Image, tt.image)
		}
	}
}

func (s semantics) apply(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("default")
	apply := func(manager, data string, force bool) (*corev1.ConfigMap, error) {
		body := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":` + data + `}`)
		return maps.Patch(s.ctx, "applied", types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: manager, Force: &force})
	}
	must(apply("one", `{"a":"1","b":"1"}`, false))(t)
	if _, err := apply("two", `{"a":"2"}`, false); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one"`) {
		t.Errorf("a field of another: %v", err)
	}
	must(apply("two", `{"a":"2","c":"2"}`, true))(t)
	// What one no longer applies goes, unless another owns it now.
	got := must(apply("one", `{}`, false))(t)
	if len(got.Data) != 2 || got.Data["a"] != "2" || got.Data["c"] != "2" {
		t.Errorf("data: %v", got.Data)
	}
	want := map[string]string{"one": `{"f:data":{}}`, "two": `{"f:data":{"f:a":{},"f:c":{}}}`}
	for _, m := range got.ManagedFields {
		if m.Operation != metav1.ManagedFieldsOperationApply || m.FieldsV1.GetRawString() != want[m.Manager] {
			t.Errorf("%s owns %s by %s, want %s", m.Manager, m.FieldsV1.GetRawString(), m.Operation, want[m.Manager])
		}
		delete(want, m.Manager)
	}
	if len(want) > 0 {
		t.Errorf("these own nothing: %v", want)
	}
	version := got.ResourceVersion
	if again := must(apply("two", `{"a":"2","c":"2"}`, false))(t); again.ResourceVersion != version {
		t.Errorf("applying the same made version %s of %s", again.ResourceVersion, version)
	}
}

func (s semantics) pages(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("kube-system")
	for i := range 7 {
		m := configMap(fmt.Sprint("page-", i), "1")
		m.Labels = map[string]string{"paged": "yes"}
		must(maps.Create(s.ctx, m, metav1.CreateOptions{}))(t)
	}
	options := metav1.ListOptions{LabelSelector: "paged=yes", Limit: 3}
	first := must(maps.List(s.ctx, options))(t)
	if err := maps.Delete(s.ctx, "page-6", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	seen := len(first.Items)
	for token := first.Continue; token != ""; {
		options.Continue = token
		next := must(maps.List(s.ctx, options))(t)
		if next.ResourceVersion != first.ResourceVersion {
			t.Errorf("a page of revision %s after one of %s", next.ResourceVersion, first.ResourceVersion)
		}
		seen, token = seen+len(next.Items), next.Continue
	}
	if seen != 7 {
		t.Errorf("the pages have %d, want all 7 of when the first was read", seen)
	}
}

func (s semantics) resourceVersions(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("kube-public")
	old := must(maps.Create(s.ctx, configMap("rv-a", "1"), metav1.CreateOptions{}))(t).ResourceVersion
	must(maps.Create(s.ctx, configMap("rv-b", "1"), metav1.CreateOptions{}))(t)
	const exact, newer = metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan
	future := "9000000000000000000"
	for _, tt := range []struct {
		rv    string
		match metav1.ResourceVersionMatch
		names string // "" if it is refused
		fails func(error) bool
	}{
		{"", "", "rv-a rv-b", nil},
		{"0", "", "rv-a rv-b", nil},
		{"0", newer, "rv-a rv-b", nil},
		{old, newer, "rv-a rv-b", nil},
		{old, exact, "rv-a", nil},
		{"0", exact, "", apierrors.IsInvalid},
		{"", newer, "", apierrors.IsInvalid},
		{"x", "", "", apierrors.IsBadRequest},
		{future, newer, "", apierrors.IsTimeout},
		{future, exact, "", apierrors.IsTimeout},
	} {
		list := &corev1.ConfigMapList{}
		options := &metav1.ListOptions{ResourceVersion: tt.rv, ResourceVersionMatch: tt.match}
		err := s.admin.CoreV1().RESTClient().Get().Namespace("kube-public").Resource("configmaps").
			VersionedParams(options, scheme.ParameterCodec).MaxRetries(0).Do(s.ctx).Into(list) // the future is worth ten tries to client-go
		if (err == nil) != (tt.fails == nil) || tt.fails != nil && !tt.fails(err) {
			t.Errorf("%q %q: %v", tt.rv, tt.match, err)
			continue
		}
		var names []string
		for _, m := range list.Items {
			if strings.HasPrefix(m.Name, "rv-") {
				names = append(names, m.Name)
			}
		}
		if got := strings.Join(names, " "); err == nil && got != tt.names {
			t.Errorf("%q %q: %s, want %s", tt.rv, tt.match, got, tt.names)
		}
	}
}

// watchList is client-go's reflector with the list as the beginning of the watch.
func (s semantics) watchList(t *testing.T) {
	maps := s.admin.CoreV1().ConfigMaps("")
	var lists int
	var mu sync.Mutex
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			mu.Lock()
			lists++
			mu.Unlock()
			return maps.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return maps.Watch(ctx, o) },
	}
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	reflector := cache.NewReflector(lw, &corev1.ConfigMap{}, store, 0)
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	go reflector.RunWithContext(ctx)
	want := must(maps.List(s.ctx, metav1.ListOptions{}))(t)
	eventually(t, "the informer has all", func() bool { return len(store.List()) == len(want.Items) && reflector.LastSyncResourceVersion() != "" })
	must(s.admin.CoreV1().ConfigMaps("default").Create(s.ctx, configMap("seen-later", "1"), metav1.CreateOptions{}))(t)
	eventually(t, "the informer sees what is new", func() bool { _, ok, _ := store.GetByKey("default/seen-later"); return ok })
	mu.Lock()
	defer mu.Unlock()
	if lists != 0 {
		t.Errorf("it listed %d times beside its watch", lists)
	}
}

// must takes what a call returns and fails the test if that is an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
