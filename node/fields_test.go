package node

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// endsWith runs until it gets a code, or is stopped.
func endsWith(codes <-chan int) func(context.Context, memory.Process) int {
	return func(ctx context.Context, p memory.Process) int {
		select {
		case code := <-codes:
			return code
		case <-p.Stop:
			return 0
		case <-ctx.Done():
			return 137
		}
	}
}

// A container that asks for it by how it ends has all of the pod start over, init
// containers too, whatever the restart policy of the others.
func TestRestartAllContainers(t *testing.T) {
	inWorld(t, func(w *world) {
		codes := make(chan int, 3)
		w.script["init"] = exits(0)
		w.script["short"] = exits(0)
		w.script["watch"] = endsWith(codes)
		w.create(`
metadata: {name: a}
spec:
  restartPolicy: Never
  initContainers:
  - {name: init, image: "localhost/hello:1"}
  - {name: side, image: "localhost/hello:1", restartPolicy: Always}
  containers:
  - {name: web, image: "localhost/hello:1"}
  - {name: short, image: "localhost/hello:1"}
  - name: watch
    image: localhost/hello:1
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
`)
		w.sleep(time.Second)
		w.expect("a", "Running ready=False init:Completed(0) side:running web:running short:Completed(0) watch:running")
		ip := w.pod("a").Status.PodIP
		w.clear()
		codes <- 42
		w.sleep(2 * time.Second)
		w.expect("a", "Running ready=False init:Completed(0)*1 side:running*1 web:running*1 short:Completed(0)*1 watch:running*1")
		if pod := w.pod("a"); pod.Status.PodIP != ip {
			t.Errorf("the address was %s, is %s", ip, pod.Status.PodIP)
		} else if last := pod.Status.ContainerStatuses[2].LastTerminationState.Terminated; last == nil || last.ExitCode != 42 {
			t.Errorf("how it ended: %+v", last)
		}
		if order := w.notes(); !strings.HasPrefix(order, "end watch 42\nend web 0\nend side 0\nstart init\nend init 0\nstart side\n") {
			t.Errorf("order:\n%s", order)
		}
		// The second time in a row it is held back, and says so.
		codes <- 42
		w.sleep(2 * time.Second)
		restarting := func() v1.ConditionStatus {
			for _, c := range w.pod("a").Status.Conditions {
				if c.Type == v1.AllContainersRestarting {
					return c.Status
				}
			}
			return "none"
		}
		if s := restarting(); s != v1.ConditionTrue {
			t.Errorf("AllContainersRestarting is %s", s)
		}
		w.sleep(10 * time.Second)
		w.expect("a", "Running ready=False init:Completed(0)*2 side:running*2 web:running*2 short:Completed(0)*2 watch:running*2")
		if s := restarting(); s != v1.ConditionFalse {
			t.Errorf("AllContainersRestarting is %s", s)
		}
		// What no rule is about ends as ever.
		codes <- 1
		w.sleep(time.Second)
		w.expect("a", "Running ready=False init:Completed(0)*2 side:running*2 web:running*2 short:Completed(0)*2 watch:Error(1)*2")
	})
}

// slowRemoval removes a sandbox at once, and says so later.
type slowRemoval struct{ runtime.Runtime }

func (s slowRemoval) RemoveSandbox(ctx context.Context, id string) error {
	err := s.Runtime.RemoveSandbox(ctx, id)
	time.Sleep(time.Second)
	return err
}

// While the engine removes the sandbox, how its containers have ended is not forgotten, and those
// that ran are not taken for new.
func TestSandboxIsRemovedSlowly(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		w.wrap = func(r runtime.Runtime) runtime.Runtime { return slowRemoval{r} }
		w.start()
		codes := make(chan int, 1)
		w.script["watch"] = endsWith(codes)
		create := func(name, policy, rules string) {
			w.create(`
metadata: {name: ` + name + `}
spec:
  restartPolicy: ` + policy + `
  containers:
  - {name: web, image: "localhost/hello:1"}
  - {name: watch, image: "localhost/hello:1"` + rules + `}
`)
			w.sleep(time.Second)
		}
		create("a", "Never", `, restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]`)
		codes <- 42
		w.sleep(10 * time.Second)
		w.expect("a", "Running ready=True web:running*1 watch:running*1")
		w.delete("a", 0)
		w.sleep(5 * time.Second)

		create("b", "Always", "")
		if err := w.machine.KillSandbox(w.sandboxes()[0].ID); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			w.settle()
			if phase := w.pod("b").Status.Phase; phase != v1.PodRunning {
				t.Fatalf("while its sandbox is replaced it is %s", phase)
			}
		}
		w.expect("b", "Running ready=True web:running*1 watch:running*1")
	})
}

// A pod that kubelet would not admit has failed, and nothing of it is made.
func TestForbiddenSysctl(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: a}
spec:
  securityContext: {sysctls: [{name: kernel.msgmax, value: "65536"}]}
  containers: [{name: web, image: "localhost/hello:1"}]
`)
		w.sleep(time.Second)
		s := w.pod("a").Status
		if s.Phase != v1.PodFailed || s.Reason != "SysctlForbidden" || !strings.Contains(s.Message, `forbidden sysctl: "kernel.msgmax" not allowlisted`) {
			t.Errorf("%s %s %s", s.Phase, s.Reason, s.Message)
		}
		if n := len(w.sandboxes()); n != 0 {
			t.Errorf("%d sandboxes", n)
		}
	})
}
