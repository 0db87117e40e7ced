package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// resourcePods each want something of the machine that shows.
const resourcePods = `
{apiVersion: v1, kind: Pod, metadata: {name: device}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "cat /dev/net/tun; test -c /dev/net/tun && echo there; sleep 1000"], resources: {limits: {example.com/tun: 1, example.com/licence: 1}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: no-device}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "test -c /dev/net/tun || echo none; sleep 1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: whole}, spec: {restartPolicy: Never, resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi, cpu: 500m}}, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "tail /dev/zero"]}, {name: d, image: localhost/busybox:1, command: [/bin/sh, -c, "sleep 1"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: sized}, spec: {terminationGracePeriodSeconds: 0, resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi, cpu: 500m}}, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "sleep 1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: layer}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "dd if=/dev/zero of=/file bs=1M count=20; sleep 1000"], resources: {limits: {ephemeral-storage: 5Mi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: volume}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: data, emptyDir: {sizeLimit: 5Mi}}], containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "dd if=/dev/zero of=/data/file bs=1M count=20; sleep 1000"], volumeMounts: [{name: data, mountPath: /data}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: within}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: data, emptyDir: {sizeLimit: 50Mi}}], containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "dd if=/dev/zero of=/data/file bs=1M count=20; touch /data/done; httpd -f -h /data -p 8080"], volumeMounts: [{name: data, mountPath: /data}], resources: {limits: {ephemeral-storage: 50Mi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: weighed}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "dd if=/dev/zero of=/file bs=1M count=8; touch /done; sleep 1000"], resources: {requests: {cpu: 250m, memory: 256Mi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: guaranteed}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "sleep 1000"], resources: {limits: {cpu: 100m, memory: 32Mi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: too-big}, spec: {nodeName: h1, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh], resources: {requests: {cpu: TOOBIG}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: huge}, spec: {nodeName: h1, containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh], resources: {limits: {hugepages-2Mi: 4Mi, memory: 16Mi}}}]}}
`

const hungry = `
{apiVersion: v1, kind: Pod, metadata: {name: hungry}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: m, emptyDir: {medium: Memory}}], containers: [{name: c, image: localhost/busybox:1, command: [/bin/sh, -c, "dd if=/dev/zero of=/m/file bs=1M count=5120; sleep 1000"], volumeMounts: [{name: m, mountPath: /m}]}]}}
`

// available is the machine's memory as eviction sees it, in bytes.
func available(t *testing.T) int64 {
	t.Helper()
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum := int64(0)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if f := strings.Fields(lines.Text()); f[0] == "MemFree:" || f[0] == "Inactive(file):" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n << 10
		}
	}
	return sum
}

// What pods ask of a machine, and what happens if they take more: devices, limits of the pod
// as a whole, limits on disk, admission, and memory that runs out.
func TestResources(t *testing.T) {
	l, run := blank(t)
	path := filepath.Join(l.HostDir("h1"), "rookery.yaml")
	configure := func(hard string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(data), "eviction-hard:")
		text += "eviction-hard: {nodefs.available: 1%, imagefs.available: 1%" + hard + "}\neviction-pressure-transition-period: 10s\nsystem-reserved: {cpu: 200m, memory: 200Mi}\n" +
			"devices: {example.com/tun: [/dev/net/tun, /dev/nosuch]}\nextended-resources: {example.com/licence: 2}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("")
	form, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.Form(form, nil, func(string) {}, true); err != nil {
		t.Fatal(err)
	}
	check := func(what, want string, argv ...string) {
		t.Helper()
		took := eventually(t, 3*time.Minute, func() error {
			out, err := run(append([]string{"rookery"}, argv...)...)
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%s: %q, want %q", what, out, want)
			}
			return err
		})
		t.Logf("%s after %s", what, took.Round(100*time.Millisecond))
	}
	apply := func(manifest string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "pods.yaml")
		if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := run("rookery", "apply", "-f", file); err != nil {
			t.Fatal(err, out)
		}
	}
	api, err := l.API()
	if err != nil {
		t.Fatal(err)
	}
	const fate = "jsonpath={.status.phase} {.status.reason}: {.status.message}"
	check("devices", `{"licence":"2","tun":"1"}`, "get", "node", "h1", "-o", `go-template={"licence":"{{index .status.allocatable "example.com/licence"}}","tun":"{{index .status.capacity "example.com/tun"}}"}`)
	checkAllocatable(t, api, "200m", "200Mi", 100<<20)
	node, err := api.CoreV1().Nodes().Get(t.Context(), "h1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	most := node.Status.Allocatable.Cpu().MilliValue() // the machine has more
	apply(strings.ReplaceAll(resourcePods, "TOOBIG", fmt.Sprintf("%dm", most+1)))
	check("a device", "there", "logs", "device")
	check("a device that can be opened", "File descriptor in bad state", "logs", "device") // by the driver, which wants more than a read
	check("no device", "none", "logs", "no-device")
	check("out of memory of the whole pod", "OOMKilled 137", "get", "pod", "whole", "-o", `jsonpath={.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}`)
	check("resources in the status", `"memory":"64Mi"`, "get", "pod", "whole", "-o", "jsonpath={.status.resources.limits}")
	check("a layer", `Failed Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. `, "get", "pod", "layer", "-o", fate)
	check("a volume", `Failed Evicted: Usage of EmptyDir volume "data" exceeds the limit "5Mi". `, "get", "pod", "volume", "-o", fate)
	check("too big", fmt.Sprintf("Failed OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: %d, used: ", most+1), "get", "pod", "too-big", "-o", fate)
	check("what there is", fmt.Sprintf(", capacity: %d", most), "get", "pod", "too-big", "-o", fate)
	check("huge pages", `Failed OutOfhugepages-2Mi: Pod was rejected: `, "get", "pod", "huge", "-o", fate)
	second := strings.ReplaceAll(strings.Split(resourcePods, "---")[0], "name: device}, spec: {", "name: second}, spec: {nodeName: h1, ")
	apply(second)
	check("the same device", `Failed OutOfexample.com/tun: Pod was rejected: `, "get", "pod", "second", "-o", fate)
	if left, err := filepath.Glob(l.HostDir("h1") + "/rookery/pods/*/volumes/data/file"); err != nil || len(left) != 1 {
		t.Errorf("files of evicted pods: %v %v", left, err)
	}
	check("within", "Running : ", "get", "pod", "within", "-o", fate)

	checkQoS(t, api, run)
	checkStatistics(t, api, run)

	// The pod as a whole gets more, while its container runs on.
	if out, err := run("rookery", "patch", "pod", "sized", "--subresource", "resize", "-p", `{"spec":{"resources":{"limits":{"memory":"96Mi"}}}}`); err != nil {
		t.Error(err, out)
	}
	check("resized", "96Mi 0", "get", "pod", "sized", "-o", "jsonpath={.status.resources.limits.memory} {.status.containerStatuses[0].restartCount}")
	eventually(t, 20*time.Second, func() error {
		const limit = (96 + 8) << 20 // with what the engine needs itself
		for _, pattern := range []string{"/sys/fs/cgroup/memory/libpod_parent/*/memory.limit_in_bytes", "/sys/fs/cgroup/libpod_parent/*/memory.max", "/sys/fs/cgroup/machine.slice/*/memory.max"} {
			files, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			for _, file := range files {
				if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == strconv.Itoa(limit) {
					return nil
				}
			}
		}
		return fmt.Errorf("no control group of a pod has a limit of %d", limit)
	})

	// The machine has more memory than the threshold, until a pod takes it.
	if err := l.Kill(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	kept := available(t) - 2<<30
	configure(fmt.Sprintf(", memory.available: %d", kept))
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	check("adopted with its device", "Running", "get", "pod", "device", "-o", "jsonpath={.status.phase}")
	checkAllocatable(t, api, "200m", "200Mi", kept)
	pressed := watchPressure(t, api)
	apply(hungry)
	pressed()
	check("memory", `Failed Evicted: The node was low on resource: memory. Threshold quantity: `, "get", "pod", "hungry", "-o", fate)
	check("the greedy container is named", `Container c was using `, "get", "pod", "hungry", "-o", fate)
	check("an event", "Attempting to reclaim memory", "get", "events", "-A", "--field-selector", "reason=EvictionThresholdMet")
	check("no pressure any more", "False KubeletHasSufficientMemory", "get", "node", "h1", "-o", `jsonpath={.status.conditions[?(@.type=="MemoryPressure")].status} {.status.conditions[?(@.type=="MemoryPressure")].reason}`)
	check("who used less lives", "Running", "get", "pod", "within", "-o", "jsonpath={.status.phase}")
	if out, err := run("rookery", "delete", "pod", "--all", "--wait=true", "--timeout=40s"); err != nil {
		t.Error(err, out)
	}
	eventually(t, patience, func() error { // the containers are stopped after the pods are gone from the API
		left, err := filepath.Glob(l.HostDir("h1") + "/rookery/pods/*")
		if err == nil && len(left) != 0 {
			err = fmt.Errorf("files are left: %v", left)
		}
		return err
	})
}
