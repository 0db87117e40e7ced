package node

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// update changes the pod as the API would.
func (w *world) update(name string, change func(pod *v1.Pod)) {
	w.t.Helper()
	pod := w.pod(name)
	change(pod)
	pod.Generation++
	if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), pod, pod.Namespace); err != nil {
		w.t.Fatal(err)
	}
	w.sleep(time.Second)
}

func debugger(name, image, target string) v1.EphemeralContainer {
	return v1.EphemeralContainer{
		EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Image: image, Stdin: true, TTY: true},
		TargetContainerName:      target,
	}
}

// ephemeralStates are name and state of each ephemeral container, as reported.
func ephemeralStates(pod *v1.Pod) string {
	var out []string
	for _, s := range pod.Status.EphemeralContainerStatuses {
		state := "waiting"
		switch {
		case s.State.Running != nil:
			state = "running"
		case s.State.Terminated != nil:
			state = fmt.Sprintf("ended %d", s.State.Terminated.ExitCode)
		}
		out = append(out, fmt.Sprintf("%s %s ready=%v*%d", s.Name, state, s.Ready, s.RestartCount))
	}
	return strings.Join(out, ", ")
}

// An ephemeral container runs in a pod that runs already, once, is seen by logs and
// attach, and says nothing about the pod.
func TestEphemeralContainers(t *testing.T) {
	inWorld(t, func(w *world) {
		var seen []runtime.ContainerSpec
		w.script["look"] = func(ctx context.Context, p memory.Process) int {
			seen = append(seen, p.Spec)
			fmt.Fprintln(p.Stdout, "looking")
			select {
			case <-ctx.Done():
				return 137
			case <-p.Stop:
				return 0
			case <-time.After(time.Minute):
				return 3
			}
		}
		w.create(plainPod)
		w.expect("a", "Running ready=True web:running")
		w.update("a", func(pod *v1.Pod) {
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, debugger("look", "localhost/hello:2", "web"))
		})
		if have := ephemeralStates(w.pod("a")); have != "look running ready=false*0" {
			t.Errorf("at first: %s", have)
		}
		web := w.pod("a").Status.ContainerStatuses[0].ContainerID
		if len(seen) != 1 || "podman://"+seen[0].ProcessesOf != web || !seen[0].TTY || seen[0].Image != "localhost/hello:2" {
			t.Errorf("it was started as %+v beside %s", seen, web)
		}
		answer := httptest.NewRecorder()
		w.agent.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/containerLogs/default/a/look", nil))
		if answer.Code != 200 || answer.Body.String() != "looking\n" {
			t.Errorf("its log: %d %q", answer.Code, answer.Body)
		}

		// A daemon that comes back finds it, and does not start it again.
		w.stop()
		w.start()
		w.sleep(2 * time.Minute)
		if have := ephemeralStates(w.pod("a")); have != "look ended 3 ready=false*0" {
			t.Errorf("after its end: %s", have)
		}
		w.expect("a", "Running ready=True web:running")
		if len(seen) != 1 {
			t.Errorf("it was started %d times", len(seen))
		}

		// One of a container that is not there waits; one that runs ends with the pod.
		w.update("a", func(pod *v1.Pod) {
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, debugger("late", "localhost/hello:1", ""), debugger("lost", "localhost/hello:1", "look"))
		})
		if have := ephemeralStates(w.pod("a")); have != "look ended 3 ready=false*0, late running ready=false*0, lost waiting ready=false*0" {
			t.Errorf("with more: %s", have)
		}
		w.delete("a", 30)
		w.sleep(5 * time.Second)
		if !w.gone("a") || !strings.Contains(w.notes(), "end late 0") {
			t.Errorf("the pod has not gone, or not in order: %v\n%s", w.gone("a"), w.notes())
		}
	})
}

// A pod whose initialization is stuck can be looked into.
func TestEphemeralContainerDuringInit(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  initContainers:
  - {name: first, image: "localhost/hello:1"}
  containers:
  - {name: web, image: "localhost/hello:1"}
`)
		w.update("a", func(pod *v1.Pod) {
			pod.Spec.EphemeralContainers = []v1.EphemeralContainer{debugger("look", "localhost/hello:1", "")}
		})
		w.expect("a", "Pending ready=False first:running web:PodInitializing")
		if have := ephemeralStates(w.pod("a")); have != "look running ready=false*0" {
			t.Error(have)
		}
	})
}
