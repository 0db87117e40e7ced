package node

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
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
		all := w.sandboxes()
		for _, s := range all {
			if strings.HasPrefix(s.Name, "a_") {
				resume = w.machine.Stall(s.ID)
			}
		}
		for _, s := range all {
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
		// What hangs holds up a list of all as well, and with it whoever would wait for one.
		w.stop()
		w.start()
		w.create(strings.Replace(plainPod, "name: a", "name: c", 1))
		w.sleep(listTime + 5*time.Second)
		w.expect("c", "Running ready=True web:running")
		b, err := w.machine.Runtime("test").List(t.Context(), map[string]string{spec.LabelPodUID: "uid-b"})
		if err != nil || len(b) != 1 {
			t.Fatalf("list of the other pod: %v, %v", b, err)
		}
		if err := w.machine.Kill(newestContainer(b[0]), 1, false); err != nil {
			t.Fatal(err)
		}
		w.sleep(30 * time.Second)
		w.expect("b", "Running ready=True web:running*2")
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node: %+v", c)
		}
		w.sleep(callTimeout)
		if late := w.agent.Hanging(); len(late) != 1 || late["default/a"] == nil {
			t.Errorf("hanging: %v", late)
		}
		resume()
		w.sleep(retryEngine + time.Second)
		w.expect("a", "Running ready=True web:running*1")
		w.sleep(2 * time.Minute)
		if late := w.agent.Hanging(); len(late) != 0 || len(w.sandboxes()) != 3 {
			t.Errorf("hanging: %v, sandboxes: %d", late, len(w.sandboxes()))
		}
		w.agent.mu.Lock()
		defer w.agent.mu.Unlock()
		if !w.agent.listed || w.agent.apart {
			t.Error("they are not listed again")
		}
	})
}

// newestContainer of a sandbox that has only one that runs.
func newestContainer(s runtime.Sandbox) string {
	return s.Containers[slices.IndexFunc(s.Containers, func(c runtime.Container) bool { return c.State == runtime.Running })].ID
}

// userless does not say as whom a container runs, at first.
type userless struct {
	runtime.Runtime
	fails atomic.Int32
}

func (u *userless) User(ctx context.Context, id string) (runtime.User, error) {
	switch u.fails.Add(-1) {
	case 1:
		<-ctx.Done()
		return runtime.User{}, ctx.Err()
	case 0:
		return runtime.User{}, runtime.ErrUnavailable
	}
	return u.Runtime.User(ctx, id)
}

// An engine that did not say as whom a container runs is asked again.
func TestUserIsAskedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		u := &userless{}
		u.fails.Store(2)
		w.wrap = func(rt runtime.Runtime) runtime.Runtime { u.Runtime = rt; return u }
		w.start()
		w.create(plainPod + "  securityContext: {runAsUser: 1000, runAsGroup: 2000}\n")
		w.sleep(10*time.Second + 2*retryEngine + time.Second)
		if have := w.pod("a").Status.ContainerStatuses[0].User; have == nil || have.Linux == nil || have.Linux.UID != 1000 {
			t.Errorf("user: %+v, after %d failures too few", have, u.fails.Load())
		}
	})
}

// An engine that hangs keeps no pod from being evicted.
func TestEvictionWhileEngineHangs(t *testing.T) {
	inWorld(t, func(w *world) {
		w.see(eviction.NodeFSAvailable, 500<<20, 1000<<20)
		w.create(modest)
		w.create(greedy)
		w.sleep(time.Second)
		resume := w.machine.Stall("")
		defer resume()
		w.see(eviction.NodeFSAvailable, 50<<20, 1000<<20)
		w.sleep(2*callTimeout + lookAtMachine + time.Second)
		if m := w.eventOf("Evicted"); !strings.Contains(m, "The node was low on resource: ephemeral-storage") {
			t.Errorf("the event says %q", m)
		}
	})
}
