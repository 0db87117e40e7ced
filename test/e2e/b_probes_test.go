package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// probedPods: one container answers, and each of the others is judged by what it answers. Those that
// always fail are asked seldom: a pod has 25 events, and then one in five minutes.
const probedPods = `
{apiVersion: v1, kind: Pod, metadata: {name: probes, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 30, volumes: [{name: o, hostPath: {path: DIR}}],
  initContainers: [{name: server, image: localhost/probed:1, restartPolicy: Always, env: [{name: LOG, value: /o/asked}, {name: CTL, value: /o}], volumeMounts: [{name: o, mountPath: /o}], startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}}],
  containers: [
    {name: http, image: localhost/busybox:1, command: [sleep, "1000"], ports: [{name: web, containerPort: 8080}], readinessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5, httpGet: {path: /http, port: web, httpHeaders: [{name: X-Probe, value: mine}, {name: Host, value: probe.test}]}}},
    {name: https, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5, httpGet: {path: /https, port: 8443, scheme: HTTPS}}},
    {name: grpc, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5, grpc: {port: 9090, service: grpc}}},
    {name: exec, image: localhost/busybox:1, command: [sleep, "1000"], volumeMounts: [{name: o, mountPath: /o}], readinessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5, exec: {command: [test, -f, /o/exec]}}},
    {name: tcp, image: localhost/busybox:1, command: [sleep, "1000"], ports: [{name: tls, containerPort: 8443}], readinessProbe: {periodSeconds: 1, timeoutSeconds: 5, tcpSocket: {port: tls}}},
    {name: tcp-host, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 1, timeoutSeconds: 5, tcpSocket: {port: 6443, host: 10.77.0.2}}},
    {name: http-host, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 30, httpGet: {path: /http, port: 8080, host: 127.0.0.1}}},
    {name: tcp-closed, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 30, tcpSocket: {port: 1}}},
    {name: http-slow, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 30, timeoutSeconds: 1, httpGet: {path: /slow, port: 8080}}},
    {name: exec-slow, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 30, timeoutSeconds: 1, exec: {command: [sleep, "60"]}}},
    {name: late, image: localhost/busybox:1, command: [sh, -c, "sleep 4; touch /tmp/up; sleep 1000"], startupProbe: {periodSeconds: 1, failureThreshold: 100, timeoutSeconds: 10, exec: {command: [test, -f, /tmp/up]}}, livenessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60, exec: {command: [test, -f, /tmp/up]}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: unwell, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 600, volumes: [{name: o, hostPath: {path: DIR}}],
  containers: [
    {name: live, image: localhost/busybox:1, command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"], livenessProbe: {initialDelaySeconds: 3, periodSeconds: 1, failureThreshold: 3, timeoutSeconds: 5, terminationGracePeriodSeconds: 1, exec: {command: ["false"]}}},
    {name: starts, image: localhost/busybox:1, command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"], startupProbe: {periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5, terminationGracePeriodSeconds: 1, exec: {command: [sh, -c, "echo its output; exit 1"]}}},
    {name: good, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 1, successThreshold: 3, timeoutSeconds: 10, exec: {command: [sh, -c, "echo x >> /tmp/asked"]}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: chatty, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 1,
  containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"], readinessProbe: {periodSeconds: 1, timeoutSeconds: 5, exec: {command: [sh, -c, "cat /proc/uptime; exit 1"]}}}]}}
`

// Every kind of probe, with what it is told to do otherwise than by default. When they are
// asked, to the second, is tested in node/probe.
func TestProbes(t *testing.T) {
	probedImage(t)
	dir := scratch(t)
	judged := []string{"http", "https", "grpc", "exec"}
	for _, name := range judged {
		touch(t, dir+"/"+name)
	}
	file := manifest(t, strings.ReplaceAll(probedPods, "DIR", dir))
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found --grace-period=1 -f "+file)

	state := func(judged string) string {
		return fmt.Sprintf("Running ContainersReady=ContainersNotReady Ready=ContainersNotReady server:ready http:%[1]s https:%[1]s grpc:%[1]s exec:%[1]s tcp:ready tcp-host:ready http-host:running tcp-closed:running http-slow:running exec-slow:running late:ready", judged)
	}
	pod := untilPod(t, "probes", is(state("ready")))
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.ContainersReady && c.Message != "containers with unready status: [http-host tcp-closed http-slow exec-slow]" {
			t.Errorf("message: %s", c.Message)
		}
	}
	for _, name := range judged {
		if err := os.Remove(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	untilPod(t, "probes", is(state("running")))
	touch(t, dir+"/http", dir+"/https", dir+"/grpc", dir+"/exec")
	untilPod(t, "probes", is(state("ready")))
	asked := text(t, dir+"/asked")
	for _, want := range []string{"http /http host=probe.test x-probe=mine agent=kube-probe/", "https /https host=" + pod.Status.PodIP + ":8443", "grpc grpc\n"} {
		if !strings.Contains(asked, want) {
			t.Errorf("the probes did not ask %q", want)
		}
	}
	events(t, "probes", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "Readiness probe failed: command timed out: ", "Readiness probe failed: dial tcp "+pod.Status.PodIP+":1: connect: connection refused",
		`Get "http://127.0.0.1:8080/http": dial tcp 127.0.0.1:8080: connect: connection refused`, `/slow: no answer within 1s`, "Startup probe failed: ", `service unhealthy (responded with "NOT_SERVING")`)

	untilPod(t, "unwell", func(pod *v1.Pod) string {
		for name, least := range map[string]time.Duration{"live": 5 * time.Second, "starts": time.Second} {
			c := containerOf(pod, name)
			last := c.LastTerminationState.Terminated
			if c.RestartCount == 0 || last == nil {
				return name + " was not restarted"
			}
			if ran := last.FinishedAt.Sub(last.StartedAt.Time); ran < least-time.Second || last.ExitCode != 137 {
				t.Errorf("%s ran for %s and ended with %d", name, ran, last.ExitCode)
			}
		}
		if !containerOf(pod, "good").Ready {
			return "good is not ready"
		}
		return ""
	})
	events(t, "unwell", "Killing", "Container live failed liveness probe, will be restarted", "Container starts failed startup probe, will be restarted")
	events(t, "unwell", "Unhealthy", "Startup probe failed: its output", "Liveness probe failed: ")
	if out := sh(t, "h3", "rookery -n hello exec unwell -c good -- cat /tmp/asked"); strings.Count(out, "x") < 3 {
		t.Errorf("good was asked %d times before it was ready", strings.Count(out, "x"))
	}

	// A probe that says something else each time is not an event each time.
	single, combined := 0, int32(0)
	eventually(t, patience, func() error {
		list, err := api(t).CoreV1().Events("hello").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=chatty,reason=Unhealthy"})
		if err != nil {
			return err
		}
		single, combined = 0, 0
		for _, e := range list.Items {
			if strings.HasPrefix(e.Message, "(combined from similar events): Readiness probe failed: ") {
				combined += e.Count
			} else {
				single++
			}
		}
		if single < 9 || combined < 2 {
			return fmt.Errorf("there are %d single events and %d combined ones", single, combined)
		}
		return nil
	})
	// A pod has a burst of 25 events, and one in five minutes after that; it is probed each second.
	if single > 9 || single+int(combined) > 30 {
		t.Errorf("there are %d single events and %d combined ones, want 9 and the rest of some 25", single, combined)
	}
}
