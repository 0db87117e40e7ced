package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// The machine stops: ordinary pods end before critical ones, with their grace but no more
// than there is. Those that run again after the boot are not over, whatever their
// containers exited with; the others say why they failed, and a pod that comes waits.
func TestShutdown(t *testing.T) {
	inWorld(t, func(w *world) {
		pod := func(name, more string) {
			w.create("metadata: {name: " + name + "}\nspec:\n  terminationGracePeriodSeconds: 600\n" + more + "  containers:\n  - {name: " + name + ", image: \"localhost/hello:1\"}\n")
		}
		state := func(want ...string) {
			t.Helper()
			for i := 0; i < len(want); i += 2 {
				w.expect(want[i], want[i+1])
			}
		}
		w.script["slow"] = func(ctx context.Context, _ memory.Process) int { <-ctx.Done(); return 137 }
		pod("web", "")
		pod("slow", "")
		pod("batch", "  restartPolicy: OnFailure\n")
		pod("once", "  restartPolicy: Never\n")
		pod("vital", "  priority: 2000000000\n")
		w.sleep(time.Second)
		w.clear()
		stopping := func() {
			t.Helper()
			began := time.Now()
			w.agent.Shutdown(context.Background(), 20*time.Second, 10*time.Second)
			if took := time.Since(began); took < 20*time.Second || took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			w.settle()
			if c := w.nodeReady(); c.Status != v1.ConditionFalse || c.Message != "node is shutting down" {
				t.Errorf("node: %+v", c)
			}
		}
		stopping()
		// The time of the ordinary ones is over when slow is killed, so that it has no place in the order.
		if notes := strings.Split(w.notes(), "\n"); len(notes) != 5 || slices.Index(notes, "end vital 0") < 3 || !slices.Contains(notes, "end slow 137") {
			t.Errorf("containers ended: %q", notes)
		}
		state("web", "Running ready=False web:Error(137)", "slow", "Running ready=False slow:Error(137)",
			"batch", "Running ready=False batch:Error(137)", "vital", "Running ready=False vital:Error(137)",
			"once", "Failed ready=False once:Completed(0)")
		if end := w.pod("batch").Status.ContainerStatuses[0].State.Terminated; end == nil || !strings.HasSuffix(end.Message, "it exited with 0") {
			t.Errorf("how batch ended: %+v", end)
		}
		once := w.pod("once").Status
		if _, c := podutil.GetPodCondition(&once, v1.DisruptionTarget); once.Reason != "Terminated" || once.Message != shutdownMessage || c == nil || c.Reason != v1.PodReasonTerminationByKubelet {
			t.Errorf("once: %+v", once)
		}
		pod("late", "")
		w.sleep(time.Minute)
		state("late", "Pending ready=False late:ContainerCreating")

		w.agent.Resume() // it does not stop after all
		w.sleep(2 * time.Second)
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node after the shutdown was called off: %+v", c)
		}
		state("web", "Running ready=True web:running*1", "slow", "Running ready=True slow:running*1",
			"batch", "Running ready=True batch:running*1", "vital", "Running ready=True vital:running*1",
			"once", "Failed ready=False once:Completed(0)", "late", "Running ready=True late:running")

		w.sleep(20 * time.Minute)
		stopping()
		pod("later", "")
		w.stop()
		w.machine.Crash()
		w.start()
		w.sleep(2 * time.Second)
		state("web", "Running ready=True web:running*2", "slow", "Running ready=True slow:running*2",
			"batch", "Running ready=True batch:running*2", "vital", "Running ready=True vital:running*2",
			"once", "Failed ready=False once:Completed(0)", "late", "Running ready=True late:running*1",
			"later", "Running ready=True later:running")
		if n := len(w.sandboxes()); n != 7 { // that of once is kept for its logs
			t.Errorf("%d sandboxes", n)
		}
		w.delete("web", 1)
		w.sleep(3 * time.Second)
		if !w.gone("web") {
			t.Error("web was deleted and is still there")
		}
	})
}

// A program that ends by itself before the shutdown reaches it has ended as it says.
func TestShutdownOfWhatHasEnded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.script["done"] = exits(0)
		w.create("metadata: {name: a}\nspec:\n  restartPolicy: OnFailure\n  containers:\n  - {name: done, image: \"localhost/hello:1\"}\n  - {name: runs, image: \"localhost/hello:1\"}\n")
		w.sleep(time.Second)
		w.agent.Shutdown(context.Background(), 20*time.Second, 10*time.Second)
		w.settle()
		w.expect("a", "Running ready=False done:Completed(0) runs:Error(137)")
		w.stop()
		w.machine.Crash()
		w.start()
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=False done:Completed(0) runs:running*1")
	})
}
