package apiserver_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	registration "k8s.io/api/admissionregistration/v1"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/rundigitalplatform/rookery/raftstore"
)

func TestLocalAPIServices(t *testing.T) {
	proxy, store := newFrontProxy(t), raftstore.NewMemory()
	p := start(t, store, proxy.shown)
	if err := p.BootstrapExtensions(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, services := t.Context(), p.apiServices(t)
	all, err := services.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := p.admin.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			name := v.Version + "." + g.Name
			there := slices.ContainsFunc(all.Items, func(s apiregistrationv1.APIService) bool { return s.Name == name })
			if free := g.Name == "metrics.k8s.io" || g.Name == "apiregistration.k8s.io"; there == free {
				t.Errorf("%s: there is an APIService: %t", name, there)
			} else if there && p.condition(t, name) != "True Local" {
				t.Errorf("%s is %s", name, p.condition(t, name))
			}
		}
	}

	// What was deleted comes back with the next leader, what is the cluster's no longer goes, and else nothing is written.
	gone := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1beta1.apps", Labels: map[string]string{"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
		Spec:       apiregistrationv1.APIServiceSpec{Group: "apps", Version: "v1beta1", GroupPriorityMinimum: 1, VersionPriority: 1},
	}
	if _, err := services.Create(ctx, gone, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := services.Delete(ctx, "v1.apps", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.BootstrapExtensions(ctx); err != nil {
		t.Fatal(err)
	}
	if a, b := p.condition(t, "v1.apps"), p.condition(t, "v1beta1.apps"); a != "True Local" || !strings.Contains(b, "not found") {
		t.Errorf("v1.apps is %s, v1beta1.apps is %s", a, b)
	}
	before := store.Revision()
	if err := p.BootstrapExtensions(ctx); err != nil {
		t.Fatal(err)
	}
	if store.Revision() != before {
		t.Errorf("a new leader has written %d times for nothing", store.Revision()-before)
	}
}

// A webhook that refuses everything keeps nobody from leading, and what it kept from
// being written is written when it is gone.
func TestAPIServicesUnderALock(t *testing.T) {
	proxy := newFrontProxy(t)
	p := start(t, raftstore.NewMemory(), proxy.shown)
	lock := serveHook(t, refuse)
	all := func(w *registration.ValidatingWebhook) { w.ObjectSelector = nil }
	configs := p.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := configs.Create(t.Context(), validating("lock", lock, all), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Bootstrap(t.Context()); err != nil {
		t.Errorf("a new leader's first work: %v", err)
	}
	p.leads(t)
	eventually(t, "it is refused", func() bool { return lock.calls.Load() > 0 })
	if err := configs.Delete(t.Context(), "lock", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.becomes(t, "v1.apps", "True Local")
}

func TestBuiltInGroupsAreNotGivenAway(t *testing.T) {
	proxy := newFrontProxy(t)
	p := start(t, raftstore.NewMemory(), proxy.shown)
	if err := p.BootstrapExtensions(t.Context()); err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"spec":{"service":{"namespace":"default","name":"ext"},"insecureSkipTLSVerify":true}}`)
	_, err := p.apiServices(t).Patch(t.Context(), "v1.apps", types.MergePatchType, patch, metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "apps/v1 is served by the cluster itself") {
		t.Errorf("apps/v1: %v, want 422", err)
	}
	own := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.apiregistration.k8s.io"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "apiregistration.k8s.io", Version: "v1", GroupPriorityMinimum: 1, VersionPriority: 1, Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "ext", Port: ptr(int32(1))},
	}}
	if _, err := p.apiServices(t).Create(t.Context(), own, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("apiregistration.k8s.io/v1: %v, want 422", err)
	}
}

// A user's metrics-server takes over when it works; until then, and after, ours answers.
func TestMetricsServerOfTheUser(t *testing.T) {
	proxy := newFrontProxy(t)
	p := start(t, raftstore.NewMemory(), proxy.shown)
	p.leads(t)
	ours := func() bool {
		raw, err := get(t, p.admin, "/apis/metrics.k8s.io/v1beta1")
		return err == nil && strings.Contains(string(raw), "NodeMetrics")
	}
	if !ours() {
		t.Fatal("metrics.k8s.io is not served")
	}
	e := serveExtension(t, "metrics.k8s.io", proxy.CA)
	e.down.Store(true)
	e.register(t, p, func(s *apiregistrationv1.APIService) { s.Name, s.Spec.Version = "v1beta1.metrics.k8s.io", "v1beta1" })
	p.becomes(t, "v1beta1.metrics.k8s.io", "False FailedDiscoveryCheck")
	// Nothing shows that the peer has heard of it, so it shows that it has heard of a later one.
	later := serveExtension(t, "ext.example.com", proxy.CA)
	later.register(t, p)
	eventually(t, "the peer has heard", func() bool { _, err := get(t, p.admin, extensionPath); return !apierrors.IsNotFound(err) })
	if err := p.apiServices(t).Delete(t.Context(), "v1.ext.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has gone", func() bool { _, err := get(t, p.admin, extensionPath); return apierrors.IsNotFound(err) })
	if !ours() {
		t.Error("a metrics-server that does not work has taken ours away")
	}
	if _, _, err := p.admin.Discovery().ServerGroupsAndResources(); err != nil {
		t.Errorf("it has broken discovery: %v", err)
	}

	// Its v1beta1 has nothing in it: enough to see who was asked.
	e.v1beta1.Store(true)
	e.down.Store(false)
	p.becomes(t, "v1beta1.metrics.k8s.io", "True Passed")
	eventually(t, "the user's answers", func() bool { return !ours() })
	if err := p.apiServices(t).Delete(t.Context(), "v1beta1.metrics.k8s.io", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ours is back", ours)
	groups, err := p.admin.Discovery().ServerGroups()
	if err != nil || !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "metrics.k8s.io" && len(g.Versions) == 1 }) {
		t.Errorf("discovery afterwards: %v, %v", groups, err)
	}
}

// What extension servers built on k8s.io/apiserver read, and who may read it.
func TestHowExtensionsKnowTheAPI(t *testing.T) {
	proxy := newFrontProxy(t)
	p := start(t, raftstore.NewMemory(), proxy.shown)
	if err := p.BootstrapExtensions(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := p.admin.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Data["requestheader-client-ca-file"] != string(proxy.CA) || m.Data["client-ca-file"] != string(proxy.ClientCA) {
		t.Errorf("CAs: %v", m.Data)
	}
	for key, want := range map[string]string{
		"requestheader-allowed-names": "system:front-proxy", "requestheader-username-headers": "X-Remote-User", "requestheader-group-headers": "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-", "requestheader-uid-headers": "X-Remote-Uid",
	} {
		var list []string
		if err := json.Unmarshal([]byte(m.Data[key]), &list); err != nil || !slices.Equal(list, []string{want}) {
			t.Errorf("%s: %q, %v", key, m.Data[key], err)
		}
	}
	if _, err := p.admin.RbacV1().Roles("kube-system").Get(t.Context(), "extension-apiserver-authentication-reader", metav1.GetOptions{}); err != nil {
		t.Errorf("the role to read it: %v", err)
	}
	if _, err := p.admin.RbacV1().ClusterRoles().Get(t.Context(), "system:auth-delegator", metav1.GetOptions{}); err != nil {
		t.Errorf("the role to ask about others: %v", err)
	}
}

// What users define has APIServices too, for as long as it is served.
func TestAPIServicesOfDefinitions(t *testing.T) {
	c := startCustom(t, raftstore.NewMemory())
	end := c.lead(t)
	services := c.apiServices(t)
	foreign := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1.mine.example.com"},
		Spec:       apiregistrationv1.APIServiceSpec{Group: "mine.example.com", Version: "v1", GroupPriorityMinimum: 7, VersionPriority: 7},
	}
	if _, err := services.Create(t.Context(), foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect := func(want ...string) {
		t.Helper()
		eventually(t, "the APIServices are "+strings.Join(want, ", "), func() bool {
			all, err := services.List(t.Context(), metav1.ListOptions{LabelSelector: "kube-aggregator.kubernetes.io/automanaged=true"})
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for _, s := range all.Items {
				have = append(have, s.Name)
			}
			return slices.Equal(have, want)
		})
	}
	c.define(t, aDefinition("ones", "a.example.com", "One"))
	c.define(t, aDefinition("others", "a.example.com", "Other"))
	c.define(t, aDefinition("thirds", "b.example.com", "Third"))
	c.define(t, aDefinition("mines", "mine.example.com", "Mine"))
	expect("v1.a.example.com", "v1.b.example.com")
	if s, err := services.Get(t.Context(), "v1.b.example.com", metav1.GetOptions{}); err != nil || s.Spec.GroupPriorityMinimum != 1000 || s.Spec.VersionPriority != 100 || c.condition(t, s.Name) != "True Local" {
		t.Errorf("%+v, %v", s, err)
	}
	// The next version, and another leader.
	c.change(t, "thirds.b.example.com", func(crd *definitionsv1.CustomResourceDefinition) {
		next := *crd.Spec.Versions[0].DeepCopy()
		next.Name, next.Storage = "v2", false
		crd.Spec.Versions = append(crd.Spec.Versions, next)
	})
	expect("v1.a.example.com", "v1.b.example.com", "v2.b.example.com")
	end()
	for _, name := range []string{"ones.a.example.com", "thirds.b.example.com"} {
		if err := c.definitions.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.lead(t)
	expect("v1.a.example.com")
	for _, name := range []string{"others.a.example.com", "mines.mine.example.com"} {
		if err := c.definitions.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	expect()
	if s, err := services.Get(t.Context(), foreign.Name, metav1.GetOptions{}); err != nil || s.Spec.VersionPriority != 7 {
		t.Errorf("somebody else's: %+v, %v", s, err)
	}
}
