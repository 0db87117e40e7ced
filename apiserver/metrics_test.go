package apiserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metricsclient "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// fakeAgents are the agents of nodes: n1 and n2 answer, n3 is dead, n4 fails, n5 never answers.
type fakeAgents struct {
	mu    sync.Mutex
	asked map[string]int
	pods  map[string][]string // "namespace/name" by node
}

func (f *fakeAgents) find(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if node == "n4" {
		return nil, nil, errors.New("no address is known")
	}
	return &url.URL{Scheme: "https", Host: node}, f, nil
}

func (f *fakeAgents) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.asked[r.URL.Host+r.URL.Path]++
	pods := f.pods[r.URL.Host]
	f.mu.Unlock()
	if r.URL.Host == "n5" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	used := corev1.ResourceList{"cpu": mustParse("250m"), "memory": mustParse("20Mi")}
	now, window := metav1.Now(), metav1.Duration{Duration: 15 * time.Second}
	var body any = v1beta1.NodeMetrics{Timestamp: now, Window: window, Usage: used}
	if r.URL.Path == "/usage/pods" {
		list := v1beta1.PodMetricsList{}
		for _, p := range pods {
			ns, name, _ := strings.Cut(p, "/")
			list.Items = append(list.Items, v1beta1.PodMetrics{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Timestamp: now, Window: window,
				Containers: []v1beta1.ContainerMetrics{{Name: "main", Usage: used}, {Name: "side", Usage: used}},
			})
		}
		body = list
	}
	w := httptest.NewRecorder()
	if err := json.NewEncoder(w).Encode(body); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (f *fakeAgents) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[what]
}

func TestMetrics(t *testing.T) {
	agents := &fakeAgents{asked: map[string]int{}, pods: map[string][]string{
		"n1": {"default/web-1", "default/db", "kube-system/web-9"},
		"n2": {"default/web-2", "default/web-1", "default/unknown"}, // web-1 is n1's, unknown is nobody's
		"n3": {"default/web-3"},
	}}
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Kubelet, c.Alive = agents.find, func(node string) bool { return node != "n3" }
	})
	ctx := t.Context()
	for _, n := range []string{"n1", "n2", "n3", "n4"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{"zone": "z" + n}}}
		if _, err := p.admin.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for pod, node := range map[string]string{"default/web-1": "n1", "default/web-2": "n2", "default/web-3": "n3", "default/web-4": "n4", "default/db": "n1", "default/pending": "", "kube-system/web-9": "n1"} {
		ns, name, _ := strings.Cut(pod, "/")
		obj := aPod(name)
		obj.Namespace, obj.Spec.NodeName, obj.Labels = ns, node, map[string]string{"app": name[:2]}
		obj.Spec.ServiceAccountName, obj.Spec.AutomountServiceAccountToken = "default", new(bool)
		if ns != "default" {
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
			if _, err := p.admin.CoreV1().ServiceAccounts(ns).Create(ctx, account, metav1.CreateOptions{}); err != nil && !exists(err) {
				t.Fatal(err)
			}
		}
		if _, err := p.admin.CoreV1().Pods(ns).Create(ctx, obj, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	metrics, err := metricsclient.NewForConfig(p.ClientConfig("admin", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.MetricsV1beta1()
	eventually(t, "informers know the pods", func() bool {
		pods, err1 := p.Informers().Core().V1().Pods().Lister().List(labels.Everything())
		nodes, err2 := p.Informers().Core().V1().Nodes().Lister().List(labels.Everything())
		return err1 == nil && err2 == nil && len(pods) == 7 && len(nodes) == 4
	})
	if len(agents.asked) != 0 {
		t.Errorf("agents were asked although nobody asked: %v", agents.asked)
	}

	pods := func(namespace string, o metav1.ListOptions) string {
		t.Helper()
		list, err := m.PodMetricses(namespace).List(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range list.Items {
			names = append(names, fmt.Sprintf("%s/%s %s %d", i.Namespace, i.Name, i.Labels["app"], len(i.Containers)))
		}
		return strings.Join(names, ", ")
	}
	for _, tt := range []struct {
		namespace string
		options   metav1.ListOptions
		want      string
	}{
		{"", metav1.ListOptions{}, "default/db db 2, default/web-1 we 2, default/web-2 we 2, kube-system/web-9 we 2"},
		{"default", metav1.ListOptions{LabelSelector: "app=we"}, "default/web-1 we 2, default/web-2 we 2"},
		{"default", metav1.ListOptions{FieldSelector: "metadata.name=db"}, "default/db db 2"},
		{"default", metav1.ListOptions{LabelSelector: "app=none"}, ""},
	} {
		if have := pods(tt.namespace, tt.options); have != tt.want {
			t.Errorf("pods in %q, %v: %s, want %s", tt.namespace, tt.options, have, tt.want)
		}
	}
	if _, err := m.PodMetricses("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}); !apierrors.IsBadRequest(err) {
		t.Errorf("field that cannot be selected by: %v", err)
	}
	if _, err := m.PodMetricses("").Watch(ctx, metav1.ListOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("watch: %v", err)
	}
	nodes, err := m.NodeMetricses().List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 2 || nodes.Items[1].Name != "n2" || nodes.Items[1].Labels["zone"] != "zn2" || nodes.Items[1].Usage.Cpu().MilliValue() != 250 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	one, err := m.PodMetricses("default").Get(ctx, "db", metav1.GetOptions{})
	if err != nil || one.Window.Duration != 15*time.Second || one.Containers[1].Usage.Memory().Value() != 20<<20 {
		t.Errorf("pod: %+v, %v", one, err)
	}
	for _, missing := range []string{"pending", "web-3", "web-4", "none"} {
		if _, err := m.PodMetricses("default").Get(ctx, missing, metav1.GetOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `pods.metrics.k8s.io "`+missing) {
			t.Errorf("pod %s: %v", missing, err)
		}
	}
	if _, err := m.NodeMetricses().Get(ctx, "n3", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("dead node: %v", err)
	}
	for what, n := range map[string]int{"n1/usage/pods": 1, "n2/usage/pods": 1, "n3/usage/pods": 0, "n1/usage/node": 1} {
		if have := agents.count(what); have != n {
			t.Errorf("%s was asked for %d times, want %d", what, have, n)
		}
	}

	raw, err := p.admin.CoreV1().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/db").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(ctx).Raw()
	if err != nil || !strings.Contains(string(raw), `"cells":["db","500m","40Mi","15s"]`) || !strings.Contains(string(raw), `"name":"Window"`) {
		t.Errorf("table: %s, %v", raw, err)
	}

	// One that does not answer holds up nobody for long.
	if _, err := p.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n5"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "n5 is asked", func() bool {
		_, err := m.NodeMetricses().List(ctx, metav1.ListOptions{})
		return err == nil && agents.count("n5/usage/node") == 1
	})
	began := time.Now()
	if nodes, err := m.NodeMetricses().List(ctx, metav1.ListOptions{}); err != nil || len(nodes.Items) != 2 || time.Since(began) > 5*time.Second {
		t.Errorf("with a node that hangs: %d nodes after %s, %v", len(nodes.Items), time.Since(began), err)
	}
}

// TestWhoSeesMetrics: those who may view a namespace see its usage, others do not.
func TestWhoSeesMetrics(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	const path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"
	c := client(t, p.ClientConfig("bob"))
	if err := c.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Error(); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `resource "pods" in API group "metrics.k8s.io"`) {
		t.Errorf("without a role: %v", err)
	}
	role, err := p.admin.RbacV1().ClusterRoles().Get(ctx, "system:aggregated-metrics-reader", metav1.GetOptions{})
	if err != nil || role.Labels["rbac.authorization.k8s.io/aggregate-to-view"] != "true" {
		t.Errorf("role: %+v, %v", role, err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "see"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "bob"}},
	}
	if _, err := p.admin.RbacV1().RoleBindings("default").Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "list with the role", func() bool { return c.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Error() == nil })
}
