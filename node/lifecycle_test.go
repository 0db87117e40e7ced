package node

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/runtime/memory"
)

const plainPod = `
metadata: {name: a}
spec:
  containers:
  - {name: web, image: "localhost/hello:1", imagePullPolicy: IfNotPresent}
  terminationGracePeriodSeconds: 30
`

func exits(code int) func(context.Context, memory.Process) int {
	return func(context.Context, memory.Process) int { return code }
}

func TestPodRunsAndGoes(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		w.expect("a", "Running ready=True web:running")
		pod := w.pod("a")
		if pod.Status.PodIP != "10.42.0.1" || pod.Status.HostIP != "192.0.2.1" || pod.Status.StartTime == nil {
			t.Errorf("addresses and start: %+v", pod.Status)
		}
		if id := pod.Status.ContainerStatuses[0].ContainerID; !strings.HasPrefix(id, "podman://") {
			t.Errorf("container id %q", id)
		}
		w.delete("a", 30)
		w.sleep(time.Second)
		if !w.gone("a") || len(w.sandboxes()) != 0 || w.network.count() != 0 {
			t.Errorf("left: gone=%v sandboxes=%d attached=%d", w.gone("a"), len(w.sandboxes()), w.network.count())
		}
	})
}

func TestInitAndSidecarOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["first"] = func(context.Context, memory.Process) int { time.Sleep(5 * time.Second); return 0 }
		w.script["last"] = exits(0)
		w.create(`
metadata: {name: a}
spec:
  initContainers:
  - {name: first, image: "localhost/hello:1"}
  - {name: proxy, image: "localhost/hello:1", restartPolicy: Always}
  - {name: log, image: "localhost/hello:1", restartPolicy: Always}
  - {name: last, image: "localhost/hello:1"}
  containers:
  - {name: web, image: "localhost/hello:1"}
`)
		w.sleep(hold)
		w.expect("a", "Pending ready=False first:running proxy:PodInitializing log:PodInitializing last:PodInitializing web:PodInitializing")
		w.sleep(6 * time.Second)
		w.expect("a", "Running ready=True first:Completed(0) proxy:running log:running last:Completed(0) web:running")
		w.delete("a", 30)
		w.sleep(time.Second)
		want := "start first\nend first 0\nstart proxy\nstart log\nstart last\nend last 0\nstart web\nend web 0\nend log 0\nend proxy 0"
		if have := w.notes(); have != want {
			t.Errorf("order:\n%s\nwant:\n%s", have, want)
		}
		if !w.gone("a") {
			t.Error("pod is still there")
		}
	})
}

func TestCrashBackoff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["web"] = exits(3)
		w.create(plainPod)
		// The first restart is at once, the next after 10 s, 20 s, 40 s.
		w.expect("a", "Running ready=False web:CrashLoopBackOff*1")
		w.sleep(9 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*1")
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*2")
		w.sleep(20 * time.Second)
		w.expect("a", "Running ready=False web:CrashLoopBackOff*3")
		last := w.pod("a").Status.ContainerStatuses[0].LastTerminationState.Terminated
		if last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.FinishedAt.IsZero() {
			t.Errorf("last state: %+v", last)
		}
		w.mu.Lock()
		delete(w.script, "web")
		w.mu.Unlock()
		w.sleep(41 * time.Second)
		w.expect("a", "Running ready=True web:running*4")
		if n := len(w.sandboxes()[0].Containers); n != 2 {
			t.Errorf("%d containers kept, want the present one and the one before", n)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy string
		code   int
		want   string
	}{
		{"Never", 0, "Succeeded ready=False web:Completed(0)"},
		{"Never", 2, "Failed ready=False web:Error(2)"},
		{"OnFailure", 0, "Succeeded ready=False web:Completed(0)"},
		{"OnFailure", 2, "Running ready=False web:CrashLoopBackOff*1"},
		{"Always", 0, "Running ready=False web:CrashLoopBackOff*1"},
	} {
		t.Run(tt.policy, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.script["web"] = exits(tt.code)
				w.create(plainPod + "  restartPolicy: " + tt.policy + "\n")
				w.sleep(2 * time.Second)
				w.expect("a", tt.want)
			})
		})
	}
}

func TestRestartedDaemonAdopts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["web"] = exits(1)
		w.create(plainPod)
		w.mu.Lock()
		delete(w.script, "web")
		w.mu.Unlock()
		w.sleep(11 * time.Second)
		w.expect("a", "Running ready=True web:running*2")
		before := w.pod("a").Status
		w.create(strings.Replace(plainPod, "name: a", "name: b", 1))

		w.stop()
		if err := w.client.CoreV1().Pods("default").Delete(context.Background(), "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.clear()
		w.start()
		w.sleep(5 * time.Second)
		w.expect("a", "Running ready=True web:running*2")
		after := w.pod("a").Status
		if before.ContainerStatuses[0].ContainerID != after.ContainerStatuses[0].ContainerID || before.PodIP != after.PodIP {
			t.Errorf("adopted another container: %s, was %s", after.ContainerStatuses[0].ContainerID, before.ContainerStatuses[0].ContainerID)
		}
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes, want 1: the other pod was deleted meanwhile", n)
		}
		if strings.Contains(w.notes(), "start") {
			t.Errorf("the new daemon started: %s", w.notes())
		}
	})
}

func TestPowerLoss(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		w.stop()
		w.machine.Crash()
		w.start()
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=True web:running*1")
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes, want 1", n)
		}
	})
}

func TestTerminationTakesReadinessAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		stubborn := func(ctx context.Context, _ memory.Process) int { <-ctx.Done(); return 137 }
		w.script["web"] = stubborn
		w.create(plainPod)
		w.expect("a", "Running ready=True web:running")
		w.delete("a", 30)
		w.expect("a", "Running ready=False web:running")
		w.sleep(29 * time.Second)
		if w.gone("a") {
			t.Fatal("gone before its grace was over")
		}
		w.delete("a", 5) // harder
		w.sleep(3 * time.Second)
		if !w.gone("a") {
			t.Error("a second delete did not shorten the grace")
		}
	})
}

func TestContainerRemovedBehindOurBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		rt := w.machine.Runtime("test")
		if err := rt.RemoveContainer(context.Background(), w.sandboxes()[0].Containers[0].ID); err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Second)
		w.expect("a", "Running ready=True web:running*1")
		if last := w.pod("a").Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode == 0 {
			t.Errorf("last state: %+v", last)
		}
	})
}

func TestDeadline(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod + "  activeDeadlineSeconds: 60\n")
		w.expect("a", "Running ready=True web:running")
		w.sleep(61 * time.Second)
		pod := w.pod("a")
		if pod.Status.Phase != v1.PodFailed || pod.Status.Reason != "DeadlineExceeded" {
			t.Errorf("phase %s reason %s", pod.Status.Phase, pod.Status.Reason)
		}
	})
}
