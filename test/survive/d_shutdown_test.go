package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/test/logind"
)

// stopped writes a line at each point of its life, and exits with 0 when it is told to end.
const stopped = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  priorityClassName: %[2]q
  restartPolicy: %[3]s
  terminationGracePeriodSeconds: 30
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "trap 'echo %[1]s ends >>/lines/lines; exit 0' TERM; echo %[1]s starts >>/lines/lines; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "sleep 1; echo %[1]s is told >>/lines/lines"]}}}
    volumeMounts: [{name: lines, mountPath: /lines}]
  volumes: [{name: lines, hostPath: {path: %[4]s}}]
`

// The machine is stopped in order, by a systemd-logind: ordinary pods end before critical
// ones, and the machine waits for both. Called off, or after the boot, those that a loss of
// power would have brought back run again; one that is never restarted has failed, as with kubelet.
func TestShutdown(t *testing.T) {
	dir := t.TempDir()
	machine := logind.Start(t, logind.Bus(t, shared.SystemBus(host)), time.Minute)
	if err := shared.Kill(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := shared.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
	lock := asked(t, machine)
	eventually(t, patience, func() error { // the daemon has it
		log, err := os.ReadFile(filepath.Join(shared.HostDir(host), "rookery.log"))
		if err == nil && !strings.Contains(string(log), "pods are ended in order when this machine stops") {
			err = fmt.Errorf("it does not say so")
		}
		return err
	})
	create(t, fmt.Sprintf(stopped, "plain", "", "OnFailure", dir))
	create(t, fmt.Sprintf(stopped, "vital", "system-cluster-critical", "Always", dir))
	create(t, fmt.Sprintf(stopped, "once", "", "Never", dir))
	waitReady(t, patience, "plain", "vital", "once")
	file := filepath.Join(dir, "lines")
	lines := func(want ...string) { // since they were forgotten
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for line := range strings.Lines(string(data)) {
			if name, what, _ := strings.Cut(strings.TrimSpace(line), " "); name != "once" { // it ends beside plain
				order = append(order, name+" "+what)
			}
		}
		if fmt.Sprint(order) != fmt.Sprint(want) {
			t.Errorf("in order: %q, want %q", order, want)
		}
	}
	forget := func() { // that they started, once they have said so
		t.Helper()
		eventually(t, patience, func() error {
			data, err := os.ReadFile(file)
			for _, line := range []string{"plain starts\n", "vital starts\n"} {
				if err == nil && !strings.Contains(string(data), line) {
					err = fmt.Errorf("no %q in %q", line, data)
				}
			}
			return err
		})
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	ended := []string{"plain is told", "plain ends", "vital is told", "vital ends"}
	forget()

	machine.Announce(true)
	lock.Held(t)
	lock.Released(t)
	lines(ended...)
	if c, err := condition(v1.NodeReady); err != nil || c.Status != v1.ConditionFalse || c.Message != "node is shutting down" {
		t.Errorf("the node: %+v, %v", c, err)
	}
	eventually(t, patience, func() error { return has("once", v1.PodFailed, 0) })
	once, err := pod("once")
	if err != nil {
		t.Fatal(err)
	}
	if _, c := podutil.GetPodCondition(&once.Status, v1.DisruptionTarget); once.Status.Reason != "Terminated" || c == nil || c.Reason != v1.PodReasonTerminationByKubelet {
		t.Errorf("once: %+v", once.Status)
	}
	for _, name := range []string{"plain", "vital"} {
		eventually(t, patience, func() error { return has(name, v1.PodRunning, 137) })
	}

	machine.Announce(false)
	eventually(t, patience, func() error {
		c, err := condition(v1.NodeReady)
		if err == nil && c.Status != v1.ConditionTrue {
			err = fmt.Errorf("the shutdown was called off, the node: %+v", c)
		}
		return err
	})
	runAgain(t, 1)
	lock = asked(t, machine)
	forget()

	machine.Announce(true)
	lock.Released(t)
	lines(ended...)
	if err := shared.Crash(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	machine.Prepare(false)
	if err := shared.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
	runAgain(t, 2)
	if err := has("once", v1.PodFailed, 0); err != nil {
		t.Error(err)
	}
	clear(t)
}

// asked waits for the daemon to ask for the next lock.
func asked(t *testing.T, machine *logind.Logind) *logind.Lock {
	t.Helper()
	select {
	case lock := <-machine.Locks:
		return lock
	case <-time.After(time.Minute):
		t.Fatal("the daemon asks for no lock")
		return nil
	}
}

// has is nil if the only container of a pod has ended with that code, in that phase of the pod.
func has(name string, phase v1.PodPhase, code int32) error {
	p, err := pod(name)
	if err != nil {
		return err
	}
	if s := p.Status; s.Phase != phase || len(s.ContainerStatuses) != 1 || s.ContainerStatuses[0].State.Terminated == nil || s.ContainerStatuses[0].State.Terminated.ExitCode != code {
		return fmt.Errorf("%s is %s: %+v", name, s.Phase, s.ContainerStatuses)
	}
	return nil
}

// runAgain waits until the pods run again that do, their containers restarted as often.
func runAgain(t *testing.T, restarts int32) {
	t.Helper()
	waitReady(t, 90*time.Second, "plain", "vital")
	for _, name := range []string{"plain", "vital"} {
		p, err := pod(name)
		if err != nil {
			t.Fatal(err)
		}
		if s := p.Status.ContainerStatuses[0]; s.RestartCount != restarts {
			t.Errorf("%s was started again %d times, want %d", name, s.RestartCount, restarts)
		}
	}
}
