package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"
)

func TestWaitingReasons(t *testing.T) {
	for _, tt := range []struct{ name, container, early, late, message string }{
		{"no such secret", `{name: web, image: "localhost/hello:1", env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}`,
			"CreateContainerConfigError", "CreateContainerConfigError", `secret "s" not found`},
		{"no such configmap in envFrom", `{name: web, image: "localhost/hello:1", envFrom: [{configMapRef: {name: c}}]}`,
			"CreateContainerConfigError", "CreateContainerConfigError", `configmap "c" not found`},
		{"not loaded", `{name: web, image: "localhost/other:1", imagePullPolicy: IfNotPresent}`,
			"ErrImagePull", "ImagePullBackOff", "load it with `rookery image load FILE`"},
		{"never", `{name: web, image: "example.org/other:1", imagePullPolicy: Never}`,
			"ErrImageNeverPull", "ErrImageNeverPull", "pull policy of Never"},
		{"no such image", `{name: web, image: "example.org/other:1", imagePullPolicy: IfNotPresent}`,
			"ErrImagePull", "ImagePullBackOff", "other:1"},
		{"bad name", `{name: web, image: "Not:A:Name"}`,
			"InvalidImageName", "InvalidImageName", "Not:A:Name"},
		{"as root", `{name: web, image: "localhost/hello:1", securityContext: {runAsNonRoot: true}}`,
			"CreateContainerConfigError", "CreateContainerConfigError", "image will run as root"},
		{"unsupported", `{name: web, image: "localhost/hello:1", volumeDevices: [{name: d, devicePath: /dev/x}]}`,
			"CreateContainerConfigError", "CreateContainerConfigError", "volumeDevices is not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.create("metadata: {name: a}\nspec:\n  containers:\n  - " + tt.container + "\n")
				w.expect("a", "Pending ready=False web:"+tt.early)
				w.sleep(3 * time.Second)
				w.expect("a", "Pending ready=False web:"+tt.late)
				if m := w.pod("a").Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, tt.message) {
					t.Errorf("message %q does not say %q", m, tt.message)
				}
				w.delete("a", 30)
				w.sleep(3 * time.Second)
				if !w.gone("a") {
					t.Error("a pod that never ran does not go")
				}
			})
		})
	}
}

func TestMissingSecretArrives(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  containers:
  - {name: web, image: "localhost/hello:1", volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, secret: {secretName: s}}]
`)
		w.sleep(hold)
		w.expect("a", "Pending ready=False web:ContainerCreating")
		secret := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"k": []byte("1")}}
		if _, err := w.client.CoreV1().Secrets("default").Create(context.Background(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.sleep(10 * time.Second)
		w.expect("a", "Running ready=True web:running")

		file := filepath.Join(w.dir, "uid-a", "volumes", "v", "k")
		secret.Data["k"] = []byte("2")
		if _, err := w.client.CoreV1().Secrets("default").Update(context.Background(), secret, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.sleep(2 * time.Minute)
		if data, err := os.ReadFile(file); err != nil || string(data) != "2" {
			t.Errorf("volume holds %q (%v), want the new value", data, err)
		}
	})
}

func TestProbes(t *testing.T) {
	inWorld(t, func(w *world) {
		healthy := map[string]int{"live": 0, "ready": 1, "up": 1}
		w.exec = func(_ string, command []string) int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return healthy[command[0]]
		}
		set := func(name string, code int) { w.mu.Lock(); healthy[name] = code; w.mu.Unlock() }
		w.create(`
metadata: {name: a}
spec:
  containers:
  - name: web
    image: "localhost/hello:1"
    startupProbe: {exec: {command: [up]}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [live]}, periodSeconds: 10, failureThreshold: 3}
    readinessProbe: {exec: {command: [ready]}, periodSeconds: 1, failureThreshold: 2}
`)
		w.sleep(5 * time.Second)
		w.expect("a", "Running ready=False web:running")
		if s := w.pod("a").Status.ContainerStatuses[0]; *s.Started {
			t.Error("started before the startup probe passed")
		}
		if strings.Contains(w.notes(), "exec web ready") {
			t.Error("readiness was probed before the startup probe passed")
		}
		set("up", 0)
		set("ready", 0)
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=True web:running")
		set("ready", 1)
		w.sleep(3 * time.Second)
		w.expect("a", "Running ready=False web:running")
		set("ready", 0)
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=True web:running")
		set("live", 1)
		w.sleep(31 * time.Second)
		if s := w.pod("a").Status.ContainerStatuses[0]; s.RestartCount != 1 {
			t.Errorf("restarts %d after the liveness probe failed three times: %s", s.RestartCount, summary(w.pod("a")))
		}
	})
}

func TestHooks(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  containers:
  - name: web
    image: "localhost/hello:1"
    lifecycle:
      postStart: {exec: {command: [hello]}}
      preStop: {exec: {command: [bye]}}
`)
		w.delete("a", 30)
		w.sleep(time.Second)
		want := "exec web hello\nexec web bye\nend web 0"
		if have := strings.Replace(w.notes(), "start web\n", "", 1); have != want {
			t.Errorf("order:\n%s\nwant:\n%s", have, want)
		}
	})
}

// On an island nothing can be written; what happened meanwhile is told afterwards.
func TestStatusSurvivesWithoutQuorum(t *testing.T) {
	inWorld(t, func(w *world) {
		island := true
		w.client.PrependReactor("patch", "pods", func(ktesting.Action) (bool, kruntime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if island {
				return true, nil, errors.New("no quorum")
			}
			return false, nil, nil
		})
		w.create(plainPod)
		w.sleep(time.Minute)
		w.expect("a", "")
		if !strings.Contains(w.notes(), "start web") {
			t.Error("the pod was not started")
		}
		w.mu.Lock()
		island = false
		w.mu.Unlock()
		w.sleep(11 * time.Second)
		w.expect("a", "Running ready=True web:running")
	})
}

func TestNode(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx := context.Background()
		get := func() *v1.Node {
			node, err := w.client.CoreV1().Nodes().Get(ctx, "p1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return node
		}
		ready := func() v1.NodeCondition {
			for _, c := range get().Status.Conditions {
				if c.Type == v1.NodeReady {
					return c
				}
			}
			return v1.NodeCondition{}
		}
		w.sleep(time.Second)
		node := get()
		if node.Status.NodeInfo.ContainerRuntimeVersion != "memory://1.0.0" || node.Spec.PodCIDR != "10.42.0.0/24" ||
			node.Labels[v1.LabelHostname] != "p1" || node.Status.Capacity.Cpu().IsZero() || ready().Status != v1.ConditionTrue {
			t.Errorf("node: %+v", node)
		}
		// No heartbeats.
		w.client.ClearActions()
		w.sleep(10 * time.Minute)
		for _, a := range w.client.Actions() {
			if a.GetVerb() != "get" && a.GetResource().Resource == "nodes" {
				t.Errorf("an idle peer wrote: %s %s", a.GetVerb(), a.GetSubresource())
			}
		}
		// Declared dead by others while it is well.
		for i := range node.Status.Conditions {
			if node.Status.Conditions[i].Type == v1.NodeReady {
				node.Status.Conditions[i].Status = v1.ConditionUnknown
			}
		}
		if _, err := w.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Second)
		if ready().Status != v1.ConditionTrue {
			t.Errorf("not set right: %+v", ready())
		}
		// Podman stops and comes back.
		w.machine.SetAvailable(false)
		w.sleep(2 * time.Second)
		if c := ready(); c.Status != v1.ConditionFalse || !strings.Contains(c.Message, "container engine is not available") {
			t.Errorf("engine gone: %+v", c)
		}
		w.machine.SetAvailable(true)
		w.sleep(20 * time.Second)
		if ready().Status != v1.ConditionTrue {
			t.Errorf("engine back: %+v", ready())
		}
	})
}
