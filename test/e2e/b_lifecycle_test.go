package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/test/image"
)

// probedImage puts the program that probes and hooks ask into the cluster.
func probedImage(t *testing.T) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "probed")
	build := exec.Command("go", "build", "-o", program, "../probed")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build probed: %v: %s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	loadImage(t, image.Spec{Names: []string{"localhost/probed:1"}, Entrypoint: []string{"/probed"}, Files: []image.File{{Path: "/probed", Mode: 0o755, Data: data}}})
}

// loadImage puts an image into the cluster.
func loadImage(t *testing.T, spec image.Spec) {
	t.Helper()
	var archive bytes.Buffer
	if err := image.Write(&archive, spec); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery image load "+file)
}

// scratch is a directory that tests and the pods of h2 share, as DIR in manifests.
func scratch(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(shared.HostDir("h2"), strings.ToLower(t.Name()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func touch(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func text(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// podNow is a pod of the sample's namespace as the API has it.
func podNow(t *testing.T, name string) *v1.Pod {
	t.Helper()
	pod, err := api(t).CoreV1().Pods("hello").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// patience is for machines that are slow or busy.
const patience = 4 * time.Minute

// untilPod polls a pod until check, which says what is wrong, says nothing.
func untilPod(t *testing.T, name string, check func(pod *v1.Pod) string) *v1.Pod {
	t.Helper()
	var pod *v1.Pod
	pods := api(t).CoreV1().Pods("hello") // a program for each look would take the machine from the cluster
	eventually(t, patience, func() (err error) {
		if pod, err = pods.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if wrong := check(pod); wrong != "" {
			return fmt.Errorf("pod %s: %s: %s", name, wrong, fate(pod))
		}
		return nil
	})
	return pod
}

// fate is a pod's status in a line: its phase and reason, why it is not initialized or ready, and
// each container's state with restarts.
func fate(pod *v1.Pod) string {
	out := strings.TrimSpace(fmt.Sprint(pod.Status.Phase, " ", pod.Status.Reason))
	for _, kind := range []v1.PodConditionType{v1.PodInitialized, v1.ContainersReady, v1.PodReady} {
		for _, c := range pod.Status.Conditions {
			if c.Type == kind && c.Status != v1.ConditionTrue {
				out += fmt.Sprintf(" %s=%s", c.Type, c.Reason)
			}
		}
	}
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			out += fmt.Sprintf(" %s:", c.Name)
			switch s := c.State; {
			case s.Running != nil && c.Ready:
				out += "ready"
			case s.Running != nil:
				out += "running"
			case s.Waiting != nil:
				out += s.Waiting.Reason
			case s.Terminated != nil:
				out += fmt.Sprintf("%s(%d)", s.Terminated.Reason, s.Terminated.ExitCode)
			}
			if c.RestartCount > 0 {
				out += fmt.Sprint("*", c.RestartCount)
			}
		}
	}
	return out
}

func is(want string) func(pod *v1.Pod) string {
	return func(pod *v1.Pod) string {
		if fate(pod) != want {
			return "want " + want
		}
		return ""
	}
}

func containerOf(pod *v1.Pod, name string) v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return v1.ContainerStatus{}
}

// events waits until a pod has events of that reason whose messages contain all that is wanted.
func events(t *testing.T, pod, reason string, want ...string) {
	t.Helper()
	contains(t, "h3", want, "rookery", "-n", "hello", "get", "events", "--field-selector", "involvedObject.name="+pod+",reason="+reason, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
}

// lifecyclePods begin at once; each shows a part of a pod's life.
const lifecyclePods = `
{apiVersion: v1, kind: Pod, metadata: {name: order, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 60,
  volumes: [{name: o, hostPath: {path: DIR, type: Directory}}],
  initContainers: [
    {name: first, image: localhost/busybox:1, command: [sh, -c, "sleep 1; echo first >> /o/order"], volumeMounts: [{name: o, mountPath: /o}]},
    {name: proxy, image: localhost/busybox:1, restartPolicy: Always, volumeMounts: [{name: o, mountPath: /o}],
      command: [sh, -c, "trap 'echo proxy ends >> /o/order; exit 0' TERM; echo proxy >> /o/order; sleep 1; echo proxy is up >> /o/order; touch /o/proxy-up; while :; do sleep 0.1; done"],
      startupProbe: {exec: {command: [test, -f, /o/proxy-up]}, periodSeconds: 1, failureThreshold: 60},
      readinessProbe: {exec: {command: [test, -f, /o/proxy-ready]}, periodSeconds: 1},
      lifecycle: {preStop: {exec: {command: [sh, -c, "echo proxy preStop >> /o/order"]}}}},
    {name: log, image: localhost/busybox:1, restartPolicy: Always, volumeMounts: [{name: o, mountPath: /o}],
      command: [sh, -c, "trap 'echo log ends >> /o/order; exit 0' TERM; echo log >> /o/order; touch /o/log-up; while :; do sleep 0.1; done"],
      startupProbe: {exec: {command: [test, -f, /o/log-up]}, periodSeconds: 1, failureThreshold: 60}},
    {name: last, image: localhost/busybox:1, command: [sh, -c, "echo last >> /o/order"], volumeMounts: [{name: o, mountPath: /o}]}],
  containers: [{name: main, image: localhost/busybox:1, volumeMounts: [{name: o, mountPath: /o}],
    command: [sh, -c, "trap 'sleep 1; echo main ends >> /o/order; exit 0' TERM; echo main >> /o/order; touch /o/main-up; while :; do sleep 0.1; done"],
    lifecycle: {postStart: {exec: {command: [sh, -c, "until test -f /o/main-up; do sleep 0.1; done; echo main postStart >> /o/order"]}}, preStop: {exec: {command: [sh, -c, "echo main preStop >> /o/order"]}}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: hooks, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 60,
  volumes: [{name: o, hostPath: {path: DIR, type: Directory}}],
  initContainers: [{name: server, image: localhost/probed:1, restartPolicy: Always, env: [{name: LOG, value: /o/hooks}, {name: CTL, value: /o}], volumeMounts: [{name: o, mountPath: /o}], startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60}}],
  containers: [
    {name: asks, image: localhost/busybox:1, command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"], ports: [{name: web, containerPort: 8080}],
      lifecycle: {postStart: {httpGet: {path: /hook, port: web, httpHeaders: [{name: X-Probe, value: start}]}}, preStop: {httpGet: {path: /hook, port: 8443, scheme: HTTPS, httpHeaders: [{name: X-Probe, value: stop}]}}}},
    {name: sleeps, image: localhost/busybox:1, volumeMounts: [{name: o, mountPath: /o}], command: [sh, -c, "trap 'date +%s > /o/sleeps-ends; exit 0' TERM; while :; do sleep 0.1; done"], lifecycle: {preStop: {sleep: {seconds: 4}}}},
    {name: plain, image: localhost/busybox:1, volumeMounts: [{name: o, mountPath: /o}], command: [sh, -c, "trap 'date +%s > /o/plain-ends; exit 0' TERM; while :; do sleep 0.1; done"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bad-hooks, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 2, containers: [
    {name: c, image: localhost/busybox:1, command: [sleep, "1000"], lifecycle: {postStart: {exec: {command: [sh, -c, "echo no such luck; exit 3"]}}}},
    {name: d, image: localhost/busybox:1, command: [sleep, "1000"], lifecycle: {preStop: {httpGet: {path: /, port: 1}}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ends, namespace: hello}, spec: {nodeName: h2, restartPolicy: Never, containers: [
    {name: big, image: localhost/busybox:1, command: [sh, -c, "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log"]},
    {name: named, image: localhost/busybox:1, terminationMessagePath: /tmp/last, command: [sh, -c, "echo its last word > /tmp/last; exit 3"]},
    {name: logs, image: localhost/busybox:1, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "seq 1 100; exit 4"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: crowd, namespace: hello}, spec: {nodeName: h2, restartPolicy: Never,
  initContainers: [{name: a, image: localhost/busybox:1, command: [sh, -c, "seq 1 3000 > /dev/termination-log"]}],
  containers: [
    {name: b, image: localhost/busybox:1, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "seq 1 3000 > /dev/termination-log; exit 1"]},
    {name: c, image: localhost/busybox:1, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo not told"]},
    {name: d, image: localhost/busybox:1, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "head -c 9000 /dev/zero | tr '\\0' y; exit 1"]},
    {name: e, image: localhost/busybox:1, command: [sh, -c, "exit 255"]},
    {name: f, image: localhost/busybox:1, command: [/no/such/program]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: deadline, namespace: hello}, spec: {nodeName: h2, activeDeadlineSeconds: 10, terminationGracePeriodSeconds: 1, containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: gate, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, readinessGates: [{conditionType: example.com/gate}], containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: rules, namespace: hello}, spec: {nodeName: h2, restartPolicy: Never, volumes: [{name: d, emptyDir: {}}], containers: [
    {name: again, image: localhost/busybox:1, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}], volumeMounts: [{name: d, mountPath: /d}], command: [sh, -c, "test -f /d/x && exit 7; touch /d/x; exit 42"]},
    {name: not, image: localhost/busybox:1, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [0, 9]}}], command: [sh, -c, "exit 9"]},
    {name: failing, image: localhost/busybox:1, restartPolicy: OnFailure, volumeMounts: [{name: d, mountPath: /d}], command: [sh, -c, "test -f /d/y && exit 0; touch /d/y; exit 1"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: backoff, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, volumes: [{name: o, hostPath: {path: DIR}}], containers: [{name: c, image: localhost/busybox:1, command: [sh, -c, "date +%s >> /o/backoff; exit 5"], volumeMounts: [{name: o, mountPath: /o}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: init-fails, namespace: hello}, spec: {nodeName: h2, restartPolicy: Never, initContainers: [{name: i, image: localhost/busybox:1, command: [sh, -c, "exit 6"]}], containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: init-loops, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, initContainers: [{name: i, image: localhost/busybox:1, command: [sh, -c, "exit 6"]}], containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: succeeds, namespace: hello}, spec: {nodeName: h2, restartPolicy: OnFailure, initContainers: [{name: i, image: localhost/busybox:1, command: ["true"]}, {name: s, image: localhost/busybox:1, restartPolicy: Always, command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]}], containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1"]}]}}
`

// What becomes of a pod from its first container to its last word.
func TestPodLifecycle(t *testing.T) {
	probedImage(t)
	dir := scratch(t)
	touch(t, dir+"/hook")
	file := manifest(t, strings.ReplaceAll(lifecyclePods, "DIR", dir))
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found --grace-period=1 -f "+file)

	t.Run("order", func(t *testing.T) {
		untilPod(t, "order", is("Running ContainersReady=ContainersNotReady Ready=ContainersNotReady first:Completed(0) proxy:running log:ready last:Completed(0) main:ready"))
		touch(t, dir+"/proxy-ready")
		untilPod(t, "order", is("Running first:Completed(0) proxy:ready log:ready last:Completed(0) main:ready"))
		sh(t, "h1", "rookery -n hello delete pod order")
		want := "first\nproxy\nproxy is up\nlog\nlast\nmain\nmain postStart\nmain preStop\nmain ends\nlog ends\nproxy preStop\nproxy ends\n"
		if have := text(t, dir+"/order"); have != want {
			t.Errorf("it went\n%s, want\n%s", have, want)
		}
	})
	t.Run("hooks", func(t *testing.T) {
		untilPod(t, "hooks", is("Running server:ready asks:ready sleeps:ready plain:ready"))
		began := time.Now().Unix()
		sh(t, "h1", "rookery -n hello delete pod hooks")
		asked := text(t, dir+"/hooks")
		for _, want := range []string{"http /hook host=", "x-probe=start", "https /hook host=", "x-probe=stop"} {
			if !strings.Contains(asked, want) {
				t.Errorf("the hooks asked %q, want %q", asked, want)
			}
		}
		var plain, slept int64
		if _, err := fmt.Sscan(text(t, dir+"/plain-ends")+text(t, dir+"/sleeps-ends"), &plain, &slept); err != nil || slept < began+4 || slept < plain {
			t.Errorf("deleted at %d, the one that sleeps 4 s first ended at %d, the other at %d: %v", began, slept, plain, err)
		}
		events(t, "bad-hooks", "FailedPostStartHook", "no such luck")
		untilPod(t, "bad-hooks", func(pod *v1.Pod) string {
			if containerOf(pod, "c").RestartCount == 0 {
				return "its hook failed, so c starts again"
			}
			return ""
		})
		sh(t, "h1", "rookery -n hello delete pod bad-hooks")
		events(t, "bad-hooks", "FailedPreStopHook", "PreStopHook failed", "refused")
		events(t, "bad-hooks", "Killing", "FailedPostStartHook", "Stopping container d")
	})
	t.Run("messages", func(t *testing.T) {
		pod := untilPod(t, "ends", is("Failed ContainersReady=PodFailed Ready=PodFailed big:Completed(0) named:Error(3) logs:Error(4)"))
		lines := make([]string, 0, 80)
		for i := 21; i <= 100; i++ {
			lines = append(lines, fmt.Sprint(i))
		}
		for name, want := range map[string]string{"big": strings.Repeat("x", 4096), "named": "its last word\n", "logs": strings.Join(lines, "\n") + "\n"} {
			end := containerOf(pod, name).State.Terminated
			if end.Message != want {
				t.Errorf("%s said %d bytes: %q", name, len(end.Message), end.Message)
			}
			if end.StartedAt.IsZero() || end.FinishedAt.Before(&end.StartedAt) || !strings.HasPrefix(end.ContainerID, "podman://") {
				t.Errorf("%s: %+v", name, end)
			}
		}
		pod = untilPod(t, "crowd", is("Failed ContainersReady=PodFailed Ready=PodFailed a:Completed(0) b:Error(1) c:Completed(0) d:Error(1) e:Error(255) f:StartError(128)"))
		for name, want := range map[string]int{"a": 2048, "b": 2048, "c": 0, "d": 2048} { // 12 KiB for six
			if m := containerOf(pod, name).State.Terminated.Message; len(m) != want {
				t.Errorf("%s said %d bytes: %.20q", name, len(m), m)
			}
		}
		if m := containerOf(pod, "f").State.Terminated.Message; !strings.Contains(m, "/no/such/program") {
			t.Errorf("what cannot be started: %q", m)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		pod := untilPod(t, "deadline", func(pod *v1.Pod) string {
			if !strings.HasPrefix(fate(pod), "Failed DeadlineExceeded ContainersReady=PodFailed Ready=PodFailed c:") {
				return "its time is over"
			}
			return ""
		})
		if pod.Status.Message != "Pod was active on the node longer than the specified deadline" {
			t.Errorf("message: %s", pod.Status.Message)
		}
		// On a busy machine it may not even have started by then.
		if end := containerOf(pod, "c").State.Terminated; end != nil && (end.FinishedAt.Sub(pod.Status.StartTime.Time) < 9*time.Second || end.ExitCode != 137) {
			t.Errorf("started at %s, ended: %+v", pod.Status.StartTime, end)
		}
	})
	t.Run("gate", func(t *testing.T) {
		untilPod(t, "gate", is("Running Ready=ReadinessGatesNotReady c:ready"))
		gate := func(status string) {
			must(t, "h3", "rookery", "-n", "hello", "patch", "pod", "gate", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"example.com/gate","status":"`+status+`"}]}}`)
		}
		gate("True")
		untilPod(t, "gate", is("Running c:ready"))
		gate("False")
		untilPod(t, "gate", is("Running Ready=ReadinessGatesNotReady c:ready"))
		contains(t, "h3", []string{`the status of pod readiness gate "example.com/gate" is not "True", but False`}, "rookery", "-n", "hello", "get", "pod", "gate", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].message}`)
	})
	t.Run("restarts", func(t *testing.T) {
		untilPod(t, "rules", is("Failed ContainersReady=PodFailed Ready=PodFailed again:Error(7)*1 not:Error(9) failing:Completed(0)*1"))
		pod := untilPod(t, "backoff", func(pod *v1.Pod) string {
			if c := containerOf(pod, "c"); c.RestartCount < 2 || c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" {
				return "want it restarted twice and held back"
			}
			return ""
		})
		c := containerOf(pod, "c")
		if m := c.State.Waiting.Message; !strings.HasPrefix(m, fmt.Sprintf("back-off %s restarting failed container=c pod=backoff_hello(", min(10*time.Second<<(c.RestartCount-1), 5*time.Minute))) {
			t.Errorf("after %d restarts it waits: %s", c.RestartCount, m)
		}
		if last := c.LastTerminationState.Terminated; last == nil || last.ExitCode != 5 || last.Reason != "Error" {
			t.Errorf("last: %+v", last)
		}
		var at [3]int
		if _, err := fmt.Sscan(text(t, dir+"/backoff"), &at[0], &at[1], &at[2]); err != nil || at[2]-at[1] < 9 {
			t.Errorf("it started at %v: %v", at, err)
		}
		events(t, "backoff", "BackOff", "Back-off restarting failed container c in pod backoff_hello(")
	})
	t.Run("phases", func(t *testing.T) {
		untilPod(t, "init-fails", is("Failed Initialized=ContainersNotInitialized ContainersReady=PodFailed Ready=PodFailed i:Error(6) c:PodInitializing"))
		pod := untilPod(t, "init-loops", func(pod *v1.Pod) string {
			if !strings.HasPrefix(fate(pod), "Pending Initialized=ContainersNotInitialized ContainersReady=ContainersNotReady Ready=ContainersNotReady i:CrashLoopBackOff*") {
				return "its init container should be held back"
			}
			return ""
		})
		for _, c := range pod.Status.Conditions {
			if c.Type == v1.PodInitialized && c.Message != "containers with incomplete status: [i]" {
				t.Errorf("message: %s", c.Message)
			}
		}
		pod = untilPod(t, "succeeds", is("Succeeded ContainersReady=PodCompleted Ready=PodCompleted i:Completed(0) s:Completed(0) c:Completed(0)"))
		for _, c := range pod.Status.Conditions {
			if c.Type == v1.PodInitialized && c.Reason != "PodCompleted" {
				t.Errorf("initialized: %+v", c)
			}
		}
	})
}
