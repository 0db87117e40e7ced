package node

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// eventOf returns the message of the newest event of that reason.
func (w *world) eventOf(reason string) string {
	w.t.Helper()
	list, err := w.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	message := ""
	for _, e := range list.Items {
		if e.Reason == reason {
			message = e.Message
		}
	}
	return message
}

func (w *world) nodeReady() v1.NodeCondition {
	w.t.Helper()
	node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c
		}
	}
	return v1.NodeCondition{}
}

// An engine that hangs is told by the Node; nothing of what runs is touched, and what
// was asked for meanwhile is done when it goes on.
func TestEngineHangs(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		w.sleep(time.Second)
		before := w.sandboxes()
		w.clear()
		resume := w.machine.Stall("")
		w.sleep(pingEvery + pingTime + time.Second)
		if c := w.nodeReady(); c.Status != v1.ConditionFalse || c.Reason != "ContainerEngineUnavailable" {
			t.Errorf("node: %+v", c)
		}
		w.create(strings.Replace(plainPod, "name: a", "name: b", 1))
		w.sleep(callTimeout + time.Second)
		if m := w.eventOf("FailedCreatePodSandBox"); !strings.Contains(m, "deadline exceeded") {
			t.Errorf("the event says %q", m)
		}
		resume()
		w.sleep(pingEvery + lastRetry)
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node: %+v", c)
		}
		w.expect("a", "Running ready=True web:running")
		w.expect("b", "Running ready=True web:running")
		after := w.sandboxes()
		if len(after) != 2 || w.notes() != "start web" {
			t.Errorf("%d sandboxes, containers did:\n%s", len(after), w.notes())
		}
		for _, s := range after {
			if s.Name == before[0].Name && s.ID != before[0].ID {
				t.Error("the sandbox was replaced")
			}
		}
	})
}

// A call that hangs for one pod is told in its events, and holds up no other.
func TestOneSandboxHangs(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(plainPod)
		w.create(strings.Replace(plainPod, "name: a", "name: b", 1))
		w.sleep(time.Second)
		var resume func()
		for _, s := range w.sandboxes() {
			if strings.HasPrefix(s.Name, "a_") {
				resume = w.machine.Stall(s.ID)
			}
		}
		for _, s := range w.sandboxes() {
			if err := w.machine.Kill(s.Containers[0].ID, 1, false); err != nil {
				t.Fatal(err)
			}
		}
		w.sleep(time.Second)
		if n := w.pod("b").Status.ContainerStatuses[0].RestartCount; n != 1 {
			t.Errorf("the other pod was restarted %d times", n)
		}
		if n := w.pod("a").Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("the pod was restarted %d times while the engine says nothing of it", n)
		}
		w.sleep(callTimeout)
		if m := w.eventOf("FailedSync"); !strings.Contains(m, "error determining status") || !strings.Contains(m, "deadline exceeded") {
			t.Errorf("the event says %q", m)
		}
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node: %+v", c)
		}
		resume()
		w.sleep(retryEngine + time.Second)
		w.expect("a", "Running ready=True web:running*1")
	})
}
