package node

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/runtime"
)

func resized(cpu, memory string) v1.ResourceRequirements {
	list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	return v1.ResourceRequirements{Requests: list, Limits: list}
}

// resizeCondition is what a pod says of a resize that is not through.
func resizeCondition(pod *v1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodResizePending || c.Type == v1.PodResizeInProgress {
			return fmt.Sprintf("%s %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	return ""
}

// Resources of a running container change in place; what cannot be is said.
func TestResize(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  activeDeadlineSeconds: 36000 # its time is far, and must not put off what is sooner
  containers:
  - name: web
    image: "localhost/hello:1"
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 100m, memory: 16Mi}}
  - name: busy
    image: "localhost/hello:1"
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 100m, memory: 16Mi}}
`)
		resize := func(container int, to v1.ResourceRequirements) *v1.Pod {
			t.Helper()
			w.update("a", func(pod *v1.Pod) { pod.Spec.Containers[container].Resources = to })
			return w.pod("a")
		}
		state := func(pod *v1.Pod, container int) string {
			s := pod.Status.ContainerStatuses[container]
			if s.Resources == nil {
				return "unknown"
			}
			return fmt.Sprintf("%s %s*%d", s.Resources.Limits.Cpu(), s.Resources.Limits.Memory(), s.RestartCount)
		}
		if have := state(w.pod("a"), 0); have != "100m 16Mi*0" {
			t.Errorf("at first: %s", have)
		}
		if pod := resize(0, resized("200m", "16Mi")); state(pod, 0) != "200m 16Mi*0" || resizeCondition(pod) != "" {
			t.Errorf("more CPU: %s, %q", state(pod, 0), resizeCondition(pod))
		}
		if pod := resize(0, resized("200m", "32Mi")); state(pod, 0) != "200m 32Mi*1" {
			t.Errorf("more memory, which restarts: %s", state(pod, 0))
		}
		if pod := resize(1, resized("100m", "32Mi")); state(pod, 1) != "100m 32Mi*0" {
			t.Errorf("more memory in place: %s", state(pod, 1))
		}
		// It uses 8 MiB.
		pod := resize(1, resized("100m", "4Mi"))
		if want := "PodResizeInProgress Error: attempting to set memory limit (4194304) below current usage (8388608)"; state(pod, 1) != "100m 32Mi*0" || resizeCondition(pod) != want {
			t.Errorf("less memory than it uses: %s, %q", state(pod, 1), resizeCondition(pod))
		}
		pod = resize(1, resized("1000", "32Mi"))
		if have := resizeCondition(pod); state(pod, 1) != "100m 32Mi*0" || !strings.HasPrefix(have, "PodResizePending Infeasible: Node didn't have enough capacity: cpu, requested: 1000200, capacity: ") {
			t.Errorf("more CPU than there is: %s, %q", state(pod, 1), have)
		}
		// What fits the machine, but not beside another pod, has to wait for that one to go.
		spare := w.agent.node.allocatable()[v1.ResourceCPU]
		other := spare.DeepCopy()
		other.Sub(resource.MustParse("500m"))
		w.create("metadata: {name: b}\nspec: {containers: [{name: b, image: 'localhost/hello:1', resources: {requests: {cpu: " + other.String() + "}}}]}")
		pod = resize(1, resized("600m", "32Mi"))
		if want := "PodResizePending Deferred: Node didn't have enough resource: cpu"; state(pod, 1) != "100m 32Mi*0" || resizeCondition(pod) != want {
			t.Errorf("more CPU than is left: %s, %q", state(pod, 1), resizeCondition(pod))
		}
		w.delete("b", 0)
		w.sleep(resizeAgain + time.Second)
		if pod = w.pod("a"); state(pod, 1) != "600m 32Mi*0" || resizeCondition(pod) != "" {
			t.Errorf("after the other is gone: %s, %q", state(pod, 1), resizeCondition(pod))
		}
		if pod = resize(1, resized("300m", "32Mi")); state(pod, 1) != "300m 32Mi*0" || resizeCondition(pod) != "" {
			t.Errorf("again what fits: %s, %q", state(pod, 1), resizeCondition(pod))
		}
		events, err := w.client.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
		if err != nil || !strings.Contains(fmt.Sprint(events.Items), "ResizeInfeasible") {
			t.Errorf("events: %v", err)
		}
	})
}

// Of two resizes at once that fit one by one, but not together, one is granted.
func TestResizesAtOnce(t *testing.T) {
	table, err := devices.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	have := v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10")}
	for range 200 {
		l := newLedger(table)
		var granted, deferred atomic.Int32
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for _, name := range []string{"a", "b"} {
			if _, err := l.admit(sized(name, 0, v1.PodQOSBurstable, "100m"), have); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				<-begin
				switch r := l.resize(sized(name, 0, v1.PodQOSBurstable, "600m"), have); r.reason {
				case "":
					granted.Add(1)
				case v1.PodReasonDeferred:
					deferred.Add(1)
				default:
					t.Error(r)
				}
			})
		}
		close(begin)
		wg.Wait()
		if granted.Load() != 1 || deferred.Load() != 1 {
			t.Fatalf("%d are granted and %d deferred", granted.Load(), deferred.Load())
		}
	}
	l := newLedger(table)
	if r := l.resize(sized("a", 0, v1.PodQOSBurstable, "2"), have); r != (room{v1.PodReasonInfeasible, "Node didn't have enough capacity: cpu, requested: 2000, capacity: 1000"}) {
		t.Error(r)
	}
}

// The sandbox has the pod's own resources and the weight of all its containers, and
// follows a resize of either; one that a former daemon did not weigh gets its weight.
func TestPodLevelResources(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  resources: {requests: {cpu: 500m, memory: 32Mi}, limits: {cpu: 1, memory: 64Mi}}
  containers:
  - {name: web, image: "localhost/hello:1"}
  - {name: side, image: "localhost/hello:1", resources: {requests: {cpu: 100m}, limits: {cpu: 100m, memory: 16Mi}}}
`)
		have := func() string {
			t.Helper()
			r, ok := w.machine.SandboxResources(w.sandboxes()[0].ID)
			s := w.pod("a").Status
			if !ok || s.Resources == nil {
				t.Fatalf("no sandbox, or none of its resources in the status: %v %+v", ok, s.Resources)
			}
			return fmt.Sprintf("shares=%d quota=%d memory=%d status %s %s of %s", r.CPUShares, r.CPUQuota, r.MemoryLimit>>20,
				s.Resources.Limits.Cpu(), s.Resources.Limits.Memory(), s.AllocatedResources.Memory())
		}
		if have, want := have(), "shares=512 quota=100000 memory=64 status 1 64Mi of 32Mi"; have != want {
			t.Errorf("at first: %s, want %s", have, want)
		}
		w.update("a", func(pod *v1.Pod) { *pod.Spec.Resources = resized("750m", "128Mi") })
		if have, want := have(), "shares=768 quota=75000 memory=128 status 750m 128Mi of 128Mi"; have != want {
			t.Errorf("after a resize: %s, want %s", have, want)
		}
		web := w.sandboxes()[0].Containers[0]
		w.update("a", func(pod *v1.Pod) { *pod.Spec.Resources = resized("1000", "128Mi") })
		if have := resizeCondition(w.pod("a")); !strings.HasPrefix(have, "PodResizePending Infeasible") {
			t.Errorf("more CPU than there is: %q", have)
		}
		w.update("a", func(pod *v1.Pod) { *pod.Spec.Resources = resized("750m", "128Mi") })
		w.stop()
		if err := w.machine.Runtime("test").UpdateSandbox(context.Background(), w.sandboxes()[0], runtime.Resources{}); err != nil {
			t.Fatal(err)
		}
		path := w.dir + "/uid-a/state.json"
		state, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		state = regexp.MustCompile(`"bounds":\{[^}]*\},`).ReplaceAll(state, nil)
		if err := os.WriteFile(path, state, 0o600); err != nil {
			t.Fatal(err)
		}
		w.start()
		if have, want := have(), "shares=768 quota=75000 memory=128 status 750m 128Mi of 128Mi"; have != want {
			t.Errorf("after a daemon that knew nothing of it: %s, want %s", have, want)
		}
		if now := w.sandboxes()[0].Containers[0]; now.ID != web.ID {
			t.Error("it was started anew")
		}
	})
}
