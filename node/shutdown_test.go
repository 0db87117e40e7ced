package node

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// The machine stops: ordinary pods end before critical ones, with their grace but no
// more than there is, and say why; a pod that comes is refused.
func TestShutdown(t *testing.T) {
	inWorld(t, func(w *world) {
		pod := func(name, more string) {
			w.create("metadata: {name: " + name + "}\nspec:\n  terminationGracePeriodSeconds: 600\n" + more + "  containers:\n  - {name: " + name + ", image: \"localhost/hello:1\"}\n")
		}
		pod("web", "")
		pod("slow", "")
		pod("vital", "  priority: 2000000000\n")
		w.mu.Lock()
		w.script["slow"] = nil
		w.mu.Unlock()
		w.sleep(time.Second)
		w.clear()
		done := make(chan struct{})
		began := time.Now()
		go func() {
			w.agent.Shutdown(context.Background(), 20*time.Second, 10*time.Second)
			close(done)
		}()
		w.settle()
		if c := w.nodeReady(); c.Status != v1.ConditionFalse || c.Message != "node is shutting down" {
			t.Errorf("node: %+v", c)
		}
		<-done
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("it took %s", took)
		}
		if notes := w.notes(); !strings.HasSuffix(notes, "end vital 0") || strings.Count(notes, "end ") != 3 {
			t.Errorf("containers ended:\n%s", notes)
		}
		for _, name := range []string{"web", "slow", "vital"} {
			if s := w.pod(name).Status; s.Phase != v1.PodFailed && s.Phase != v1.PodSucceeded || s.Reason != "Terminated" || s.Message != "Pod was terminated in response to imminent node shutdown." {
				t.Errorf("%s: %s %s %s", name, s.Phase, s.Reason, s.Message)
			}
		}
		pod("late", "")
		w.sleep(time.Second)
		if s := w.pod("late").Status; s.Phase != v1.PodFailed || s.Reason != "NodeShutdown" {
			t.Errorf("late: %s %s", s.Phase, s.Reason)
		}
		if strings.Contains(w.notes(), "start late") {
			t.Error("a pod was started on a machine that stops")
		}
		w.agent.Resume() // it does not stop after all
		w.settle()
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node after the shutdown was called off: %+v", c)
		}
		pod("later", "")
		w.sleep(time.Second)
		if s := w.pod("later").Status; s.Phase != v1.PodRunning {
			t.Errorf("later: %s %s", s.Phase, s.Reason)
		}
		if s := w.pod("web").Status; s.Phase != v1.PodFailed && s.Phase != v1.PodSucceeded {
			t.Errorf("web, which was ended: %s", s.Phase)
		}
		go w.agent.Shutdown(context.Background(), 20*time.Second, 10*time.Second)
		w.settle()
		if c := w.nodeReady(); c.Status != v1.ConditionFalse {
			t.Errorf("node at the next shutdown: %+v", c)
		}
	})
}
