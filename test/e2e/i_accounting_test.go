package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// raisesOOMScores: only who has CAP_SYS_RESOURCE may make a process less likely to be killed
// than its parent (proc_pid_oom_score_adj(5)). The lab's Podman has what the test has.
func raisesOOMScores(t *testing.T) bool {
	t.Helper()
	const capSysResource = 24 // linux/capability.h
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return caps&(1<<capSysResource) != 0
		}
	}
	t.Fatalf("no CapEff in %s", status)
	return false
}

// cpuGroup is the control group that weighs a container, and whether it is of version 2.
func cpuGroup(containerID string) (dir string, v2 bool, err error) {
	id := strings.TrimPrefix(containerID, "podman://")
	for pattern, v2 := range map[string]bool{
		"/sys/fs/cgroup/cpu/libpod_parent/*/libpod-" + id + "/cpu.shares": false,
		"/sys/fs/cgroup/libpod_parent/*/libpod-" + id + "/cpu.weight":     true,
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", false, err
		}
		if len(files) == 1 {
			return filepath.Dir(files[0]), v2, nil
		}
	}
	return "", false, fmt.Errorf("container %q has no control group for its cpu", id)
}

// checkQoS looks at how the kernel is told who comes first: for cpu time by weights of
// the containers and of their pods, and for staying when memory runs out by oom scores.
func checkQoS(t *testing.T, api kubernetes.Interface, run func(argv ...string) (string, error)) {
	t.Helper()
	node, err := api.CoreV1().Nodes().Get(t.Context(), "h1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	burstable := 1000 - 1000*(256<<20)/node.Status.Capacity.Memory().Value() // kubelet's pkg/kubelet/qos/policy.go
	guaranteed := "-997\n"
	if !raisesOOMScores(t) {
		// The score stays as it was inherited: that is all that can be had here.
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		guaranteed = string(own)
	}
	for _, tt := range []struct {
		pod, score     string
		shares         string   // version 1: of the pod and of its only container
		weight, weighs []string // version 2: of the pod; of the container, which runc weighs otherwise since 1.3.2
	}{
		{"no-device", "1000\n", "2", []string{"1"}, []string{"1"}},
		{"weighed", fmt.Sprintf("%d\n", min(max(burstable, 3), 999)), "256", []string{"10"}, []string{"10", "35"}},
		{"guaranteed", guaranteed, "102", []string{"4"}, []string{"4", "17"}},
	} {
		var p *corev1.Pod
		eventually(t, 3*time.Minute, func() (err error) {
			if p, err = api.CoreV1().Pods("default").Get(t.Context(), tt.pod, metav1.GetOptions{}); err == nil && p.Status.Phase != corev1.PodRunning {
				err = fmt.Errorf("%s is %s", tt.pod, p.Status.Phase)
			}
			return err
		})
		if out, err := run("rookery", "exec", tt.pod, "--", "cat", "/proc/1/oom_score_adj"); err != nil || out != tt.score {
			t.Errorf("the oom score of %s, %s, is %q, want %q: %v", tt.pod, p.Status.QOSClass, out, tt.score, err)
		}
		dir, v2, err := cpuGroup(p.Status.ContainerStatuses[0].ContainerID)
		if err != nil {
			t.Error(err)
			continue
		}
		file, ofPod, ofContainer := "cpu.shares", []string{tt.shares}, []string{tt.shares}
		if v2 {
			file, ofPod, ofContainer = "cpu.weight", tt.weight, tt.weighs
		}
		eventually(t, patience, func() error { // a pod is weighed once it runs
			pod, err1 := os.ReadFile(filepath.Dir(dir) + "/" + file)
			container, err2 := os.ReadFile(dir + "/" + file)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			if !slices.Contains(ofPod, strings.TrimSpace(string(pod))) || !slices.Contains(ofContainer, strings.TrimSpace(string(container))) {
				return fmt.Errorf("%s has %s of %q, its container of %q, want %q and %q", tt.pod, file, pod, container, ofPod, ofContainer)
			}
			return nil
		})
	}
}

// checkAllocatable waits until the Node offers what it has except what is reserved, and
// memory and disk at which pods would be evicted: so many bytes of the one, a hundredth of
// the other.
func checkAllocatable(t *testing.T, api kubernetes.Interface, cpu, memory string, memoryKept int64) {
	t.Helper()
	cpuReserved, memoryReserved := resource.MustParse(cpu), resource.MustParse(memory)
	eventually(t, 3*time.Minute, func() error {
		node, err := api.CoreV1().Nodes().Get(t.Context(), "h1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		has, offers := node.Status.Capacity, node.Status.Allocatable
		for _, tt := range []struct {
			name       corev1.ResourceName
			have, want int64
		}{
			{corev1.ResourceCPU, offers.Cpu().MilliValue(), has.Cpu().MilliValue() - cpuReserved.MilliValue()},
			{corev1.ResourceMemory, offers.Memory().Value(), has.Memory().Value() - memoryReserved.Value() - memoryKept},
			{corev1.ResourceEphemeralStorage, offers.StorageEphemeral().Value(), has.StorageEphemeral().Value() - int64(float64(has.StorageEphemeral().Value())*0.01)},
		} {
			if tt.have != tt.want || tt.have <= 0 {
				return fmt.Errorf("of %s the node has %v and offers %d, want %d", tt.name, has[tt.name], tt.have, tt.want)
			}
		}
		return nil
	})
}

// podStats is what the peer's summary says of a pod.
func podStats(t *testing.T, api kubernetes.Interface, pod string) (stats.PodStats, error) {
	t.Helper()
	data, err := api.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/h1/proxy/stats/summary").DoRaw(t.Context())
	if err != nil {
		return stats.PodStats{}, err
	}
	var s stats.Summary
	if err := json.Unmarshal(data, &s); err != nil {
		return stats.PodStats{}, err
	}
	for _, p := range s.Pods {
		if p.PodRef.Name == pod {
			return p, nil
		}
	}
	return stats.PodStats{}, fmt.Errorf("the summary has no pod %s", pod)
}

// checkStatistics compares what the summary says with what pods did: one wrote 20 MiB into
// its volume and sends them to the other, which wrote 8 MiB into its layer.
func checkStatistics(t *testing.T, api kubernetes.Interface, run func(argv ...string) (string, error)) {
	t.Helper()
	var sender *corev1.Pod
	eventually(t, 3*time.Minute, func() (err error) { // files are measured twice a minute at most: not too early
		if sender, err = api.CoreV1().Pods("default").Get(t.Context(), "within", metav1.GetOptions{}); err == nil {
			_, err = run("rookery", "exec", "within", "--", "test", "-f", "/data/done")
		}
		if err == nil {
			_, err = run("rookery", "exec", "weighed", "--", "test", "-f", "/done")
		}
		return err
	})
	received := func() uint64 {
		t.Helper()
		p, err := podStats(t, api, "weighed")
		if err != nil || p.Network == nil || p.Network.RxBytes == nil || *p.Network.RxBytes == 0 {
			t.Fatalf("weighed received nothing: %+v %v", p.Network, err)
		}
		return *p.Network.RxBytes
	}
	page := "http://" + sender.Status.PodIP + ":8080/file"
	eventually(t, patience, func() error {
		_, err := run("rookery", "exec", "weighed", "--", "wget", "-q", "-O", "/dev/null", "http://"+sender.Status.PodIP+":8080/done")
		return err
	})
	before := received()
	if out, err := run("rookery", "exec", "weighed", "--", "wget", "-q", "-O", "/dev/null", page); err != nil {
		t.Error(err, out)
	}
	eventually(t, patience, func() error {
		if after := received(); after < before+20<<20 || after > before+40<<20 {
			return fmt.Errorf("weighed received %d bytes, then 20 MiB, and it is %d", before, after)
		}
		p, err := podStats(t, api, "within")
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(p.VolumeStats, func(v stats.VolumeStats) bool { return v.Name == "data" }); i < 0 || !atLeast(p.VolumeStats[i].UsedBytes, 20<<20) {
			return fmt.Errorf("volumes are %+v, want data with 20 MiB", p.VolumeStats)
		}
		if p.Network == nil || !atLeast(p.Network.TxBytes, 20<<20) || !atLeast(p.EphemeralStorage.UsedBytes, 20<<20) {
			return fmt.Errorf("within sent %+v and stores %+v, want 20 MiB", p.Network, p.EphemeralStorage)
		}
		if p, err = podStats(t, api, "weighed"); err != nil {
			return err
		}
		for _, c := range p.Containers {
			if c.Rootfs == nil || !atLeast(c.Rootfs.UsedBytes, 8<<20) || *c.Rootfs.UsedBytes > 16<<20 {
				return fmt.Errorf("what weighed wrote is %+v, want 8 MiB", c.Rootfs)
			}
			if !atLeast(c.CPU.UsageCoreNanoSeconds, 1) || !atLeast(c.Memory.WorkingSetBytes, 1) {
				return fmt.Errorf("weighed used cpu %+v and memory %+v", c.CPU, c.Memory)
			}
		}
		return nil
	})
}

func atLeast(n *uint64, least uint64) bool { return n != nil && *n >= least }

// watchPressure begins to watch the Node; what it returns waits until memory was short, and
// the Node said so and kept further pods away.
func watchPressure(t *testing.T, api kubernetes.Interface) (wait func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	w, err := api.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=h1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return func() {
		t.Helper()
		var said, tainted bool
		for event := range w.ResultChan() {
			node, ok := event.Object.(*corev1.Node)
			if !ok {
				t.Fatalf("watch the node: %+v", event.Object)
			}
			said = said || slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeMemoryPressure && c.Status == corev1.ConditionTrue && c.Reason == "KubeletHasInsufficientMemory"
			})
			tainted = tainted || slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool {
				return taint.Key == corev1.TaintNodeMemoryPressure && taint.Effect == corev1.TaintEffectNoSchedule
			})
			if said && tainted {
				return
			}
		}
		t.Fatalf("memory pressure: the condition was true: %v, the taint was there: %v", said, tainted)
	}
}
