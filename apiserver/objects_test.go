package apiserver_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func exists(err error) bool { return apierrors.IsAlreadyExists(err) }

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"k": value}}
}

func aPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "localhost/hello:1"}}},
	}
}

func aDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: aPod("").Spec},
		},
	}
}

func TestObjects(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	maps := p.admin.CoreV1().ConfigMaps("default")

	t.Run("create, get, update, delete", func(t *testing.T) {
		made, err := maps.Create(ctx, configMap("a", "1"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := maps.Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			t.Errorf("second create: %v", err)
		}
		made.Data["k"] = "2"
		if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("update of an old version: %v", err)
		}
		if got, err := maps.Get(ctx, "a", metav1.GetOptions{}); err != nil || got.Data["k"] != "2" {
			t.Errorf("got %v, %v", got, err)
		}
		if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := maps.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("after delete: %v", err)
		}
	})

	t.Run("dry run leaves nothing", func(t *testing.T) {
		if _, err := maps.Create(ctx, configMap("dry", "1"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Fatal(err)
		}
		if _, err := maps.Get(ctx, "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("watch", func(t *testing.T) {
		w, err := maps.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=seen"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		for _, name := range []string{"unseen", "seen"} {
			if _, err := maps.Create(ctx, configMap(name, "1"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := maps.Delete(ctx, "seen", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []watch.EventType{watch.Added, watch.Deleted} {
			select {
			case e := <-w.ResultChan():
				if m, ok := e.Object.(*corev1.ConfigMap); !ok || e.Type != want || m.Name != "seen" {
					t.Fatalf("want %s, got %s %v", want, e.Type, e.Object)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no %s event", want)
			}
		}
	})

	t.Run("watch ends when its context does", func(t *testing.T) {
		short, cancel := context.WithCancel(ctx)
		w, err := maps.Watch(short, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		eventually(t, "watch closed", func() bool {
			select {
			case _, open := <-w.ResultChan():
				return !open
			default:
				return false
			}
		})
	})

	t.Run("server-side apply", func(t *testing.T) {
		apply := func(manager, key string) error {
			_, err := maps.Apply(ctx, applycorev1.ConfigMap("applied", "default").WithData(map[string]string{"k": key}), metav1.ApplyOptions{FieldManager: manager})
			return err
		}
		if err := apply("one", "1"); err != nil {
			t.Fatal(err)
		}
		if err := apply("two", "2"); !apierrors.IsConflict(err) {
			t.Errorf("a second owner's change: %v", err)
		}
	})

	t.Run("scale", func(t *testing.T) {
		deployments := p.admin.AppsV1().Deployments("default")
		if _, err := deployments.Create(ctx, aDeployment("scaled", 1), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		_, err := deployments.Patch(ctx, "scaled", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale")
		if err != nil {
			t.Fatal(err)
		}
		d, err := deployments.Get(ctx, "scaled", metav1.GetOptions{})
		if err != nil || *d.Spec.Replicas != 5 {
			t.Errorf("got %v, %v", d, err)
		}
		owned := false
		for _, m := range d.ManagedFields {
			owned = owned || m.Subresource == "scale" && strings.Contains(m.FieldsV1.GetRawString(), "f:replicas")
		}
		if !owned {
			t.Errorf("no owner of the replicas in %v", d.ManagedFields)
		}
	})

	t.Run("table", func(t *testing.T) {
		body, err := p.admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces").
			SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").Do(ctx).Raw()
		if err != nil || !strings.Contains(string(body), `"kind":"Table"`) || !strings.Contains(string(body), "kube-system") {
			t.Errorf("got %s, %v", body, err)
		}
	})

	t.Run("namespaces", func(t *testing.T) {
		if _, err := p.admin.CoreV1().ConfigMaps("nowhere").Create(ctx, configMap("a", ""), metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("create in a missing namespace: %v", err)
		}
		if err := p.admin.CoreV1().Namespaces().Delete(ctx, "kube-system", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("delete of kube-system: %v", err)
		}
		if _, err := p.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "going"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := p.admin.CoreV1().Namespaces().Delete(ctx, "going", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "no creates in a namespace that is going", func() bool {
			_, err := p.admin.CoreV1().ConfigMaps("going").Create(ctx, configMap(fmt.Sprint(time.Now().UnixNano()), ""), metav1.CreateOptions{})
			return apierrors.IsForbidden(err)
		})
	})

	t.Run("a pod is admitted", func(t *testing.T) {
		pod, err := p.admin.CoreV1().Pods("default").Create(ctx, aPod("admitted"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if pod.Spec.ServiceAccountName != "default" || len(pod.Spec.Volumes) != 1 {
			t.Errorf("service account %q, volumes %v", pod.Spec.ServiceAccountName, pod.Spec.Volumes)
		}
		seconds := map[string]int64{}
		for _, toleration := range pod.Spec.Tolerations {
			seconds[toleration.Key] = *toleration.TolerationSeconds
		}
		if len(seconds) != 2 || seconds[corev1.TaintNodeUnreachable] != 5 || seconds[corev1.TaintNodeNotReady] != 300 {
			t.Errorf("tolerates for %v s", seconds)
		}
		if pod.Spec.Priority == nil {
			t.Error("no priority")
		}
		if err := p.admin.CoreV1().Pods("default").Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "admitted"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if pod, err = p.admin.CoreV1().Pods("default").Get(ctx, "admitted", metav1.GetOptions{}); err != nil || pod.Spec.NodeName != "n1" {
			t.Errorf("bound to %q, %v", pod.Spec.NodeName, err)
		}
		if err := p.admin.PolicyV1().Evictions("default").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "admitted", Namespace: "default"}}); err != nil {
			t.Errorf("evict: %v", err)
		}
	})

	t.Run("quota", func(t *testing.T) {
		ns := p.admin.CoreV1()
		if _, err := ns.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "small"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		hard := corev1.ResourceList{"count/configmaps": mustParse("1")}
		q, err := ns.ResourceQuotas("small").Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		q.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{"count/configmaps": mustParse("0")}}
		if _, err := ns.ResourceQuotas("small").UpdateStatus(ctx, q, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "quota refuses", func() bool {
			_, err := ns.ConfigMaps("small").Create(ctx, configMap(fmt.Sprint(time.Now().UnixNano()), ""), metav1.CreateOptions{})
			return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota")
		})
	})
}

func TestLogsComeFromTheAgent(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s?%s\n", r.URL.Path, r.URL.RawQuery)
	}))
	defer agent.Close()
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Kubelet = func(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
			if node != "n1" {
				return nil, nil, fmt.Errorf("peer %s is not alive", node)
			}
			u, err := url.Parse(agent.URL)
			return u, http.DefaultTransport, err
		}
	})
	for _, tt := range []struct{ node, want string }{
		{"n1", "/containerLogs/default/on-n1/c?follow=true\n"},
		{"n2", `reach the agent of node "n2": peer n2 is not alive`},
	} {
		name := "on-" + tt.node
		pod := aPod(name)
		pod.Spec.NodeName = tt.node
		if _, err := p.admin.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		got := ""
		stream, err := p.admin.CoreV1().Pods("default").GetLogs(name, &corev1.PodLogOptions{Follow: true}).Stream(t.Context())
		if err != nil {
			got = err.Error()
		} else {
			b, _ := io.ReadAll(stream)
			got = string(b)
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("logs of %s: got %q, want %q", name, got, tt.want)
		}
	}
}
