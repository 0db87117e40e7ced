package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// see sets what the machine has of a signal's resource.
func (w *world) see(s eviction.Signal, available, capacity int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = eviction.Observations{}
	}
	w.seen[s] = eviction.Observation{Available: available, Capacity: capacity}
}

// conditions of the Node that are true.
func (w *world) conditions() string {
	w.t.Helper()
	node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, c := range node.Status.Conditions {
		if c.Status == v1.ConditionTrue {
			out = append(out, fmt.Sprintf("%s(%s)", c.Type, c.Reason))
		}
	}
	return strings.Join(out, " ")
}

// fate is how a pod ended that was not left to end by itself.
func (w *world) fate(name string) string {
	w.t.Helper()
	s := w.pod(name).Status
	out := fmt.Sprintf("%s %s: %s", s.Phase, s.Reason, s.Message)
	for _, c := range s.Conditions {
		if c.Type == v1.DisruptionTarget {
			out += fmt.Sprintf("(%s %s)", c.Status, c.Reason)
		}
	}
	return out
}

func (w *world) told() string {
	w.t.Helper()
	list, err := w.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, fmt.Sprintf("%s/%s %s %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Type, e.Reason, e.Message))
	}
	return strings.Join(out, "\n")
}

const (
	modest = `
metadata: {name: modest}
spec: {containers: [{name: modest, image: "localhost/hello:1", resources: {requests: {memory: 64Mi}}}]}
`
	greedy = `
metadata: {name: greedy}
spec: {containers: [{name: busy, image: "localhost/hello:1"}], volumes: [{name: v, emptyDir: {}}]}
`
	critical = `
metadata: {name: critical}
spec: {priority: 2000001000, containers: [{name: critical, image: "localhost/hello:1"}]}
`
	lateComer = `
metadata: {name: late}
spec: {containers: [{name: late, image: "localhost/hello:1"}]}
`
)

// Memory runs out: the pod that uses more than it asked for goes, with its files, then the
// next one; a critical one never. The Node says so for five minutes more, and takes in
// nothing that does not ask for memory.
func TestMemoryPressure(t *testing.T) {
	inWorld(t, func(w *world) {
		w.see(eviction.MemoryAvailable, 500<<20, 1<<30)
		w.mu.Lock()
		w.used = map[string]int64{"critical": 500 << 20}
		w.mu.Unlock()
		w.create(modest)
		w.create(greedy)
		w.create(critical)
		w.sleep(15 * time.Second)
		if have := w.conditions(); have != "Ready(KubeletReady)" || len(w.sandboxes()) != 3 {
			t.Fatalf("before: %s, %d sandboxes", have, len(w.sandboxes()))
		}
		w.see(eviction.MemoryAvailable, 99<<20, 1<<30)
		w.alarm() // at once, not only after ten seconds
		w.settle()
		if have := w.conditions(); have != "MemoryPressure(KubeletHasInsufficientMemory) Ready(KubeletReady)" {
			t.Errorf("conditions: %s", have)
		}
		want := "Failed Evicted: The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. Container busy was using 8Mi, request is 0, has larger consumption of memory. (True TerminationByKubelet)"
		if have := w.fate("greedy"); have != want {
			t.Errorf("greedy: %s\nwant %s", have, want)
		}
		if _, err := os.Stat(w.dir + "/uid-greedy"); err == nil || len(w.sandboxes()) != 2 {
			t.Errorf("greedy has left files (%v) or a sandbox (%d)", err, len(w.sandboxes()))
		}
		w.see(eviction.MemoryAvailable, 500<<20, 1<<30)
		w.sleep(30 * time.Second)
		if have := w.fate("modest"); !strings.HasPrefix(have, "Running") {
			t.Errorf("modest although there is memory again: %s", have)
		}
		w.create(lateComer)
		if have, want := w.fate("late"), "Failed Evicted: Pod was rejected: The node had condition: [MemoryPressure]. "; have != want {
			t.Errorf("late: %s, want %s", have, want)
		}
		w.see(eviction.MemoryAvailable, 0, 1<<30)
		w.sleep(15 * time.Second)
		if have := w.fate("modest"); !strings.HasPrefix(have, "Failed Evicted: The node was low on resource: memory.") {
			t.Errorf("modest: %s", have)
		}
		w.sleep(time.Minute)
		if have := w.fate("critical"); !strings.HasPrefix(have, "Running") {
			t.Errorf("critical: %s", have)
		}
		w.see(eviction.MemoryAvailable, 500<<20, 1<<30)
		w.sleep(4 * time.Minute)
		if have := w.conditions(); !strings.Contains(have, "MemoryPressure") {
			t.Errorf("too early: %s", have)
		}
		w.sleep(90 * time.Second)
		if have := w.conditions(); have != "Ready(KubeletReady)" {
			t.Errorf("after the transition period: %s", have)
		}
		events := w.told()
		if n := strings.Count(events, "EvictionNotPossible"); n != 1 {
			t.Errorf("%d events say that no pod can be evicted", n)
		}
		for _, want := range []string{
			"Node/p1 Warning EvictionNotPossible: The peer is low on memory and has no pod that may be evicted: see with `ps",
			"Node/p1 Warning EvictionThresholdMet: Attempting to reclaim memory", "Pod/greedy Warning Evicted: The node was low on resource: memory.",
			"Pod/late Warning Evicted: The node had condition: [MemoryPressure]. ",
		} {
			if !strings.Contains(events, want) {
				t.Errorf("no event %q in\n%s", want, events)
			}
		}
		// Another daemon finds them as they are.
		w.stop()
		w.start()
		if have := w.fate("greedy"); have != want || len(w.sandboxes()) != 1 {
			t.Errorf("greedy with the next daemon: %s; %d sandboxes", have, len(w.sandboxes()))
		}
		w.delete("greedy", 0)
		w.sleep(time.Second)
		if !w.gone("greedy") {
			t.Error("greedy cannot be deleted")
		}
	})
}

// A soft threshold gives the machine time to recover, and the pod its own grace up to a bound.
func TestSoftThreshold(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		w.config.Eviction = eviction.Settings{
			Soft: map[string]string{"pid.available": "1000"}, SoftGrace: map[string]string{"pid.available": "1m"},
			Transition: 20 * time.Second, MaxPodGrace: 15 * time.Second,
		}
		w.start()
		w.script["busy"] = func(ctx context.Context, _ memory.Process) int { <-ctx.Done(); return 137 }
		w.create(greedy)
		w.see(eviction.PIDAvailable, 999, 32768)
		w.sleep(65 * time.Second)
		if have := w.conditions(); !strings.Contains(have, "PIDPressure(KubeletHasInsufficientPID)") || !strings.HasPrefix(w.fate("greedy"), "Running : ") {
			t.Fatalf("within the period: %s, %s", have, w.fate("greedy"))
		}
		w.sleep(10 * time.Second)
		if have := w.fate("greedy"); !strings.HasPrefix(have, "Running Evicted: The node was low on resource: pids. Threshold quantity: 1k, available: 999. ") {
			t.Errorf("after the period: %s", have)
		}
		w.see(eviction.PIDAvailable, 9999, 32768)
		w.sleep(13 * time.Second)
		if have := w.fate("greedy"); !strings.HasPrefix(have, "Failed Evicted") {
			t.Errorf("after its grace: %s", have)
		}
		w.sleep(30 * time.Second)
		if have := w.conditions(); have != "Ready(KubeletReady)" {
			t.Errorf("in the end: %s", have)
		}
	})
}

// Disk runs out: what nobody needs goes first, and pods only if that does not help.
func TestDiskPressure(t *testing.T) {
	inWorld(t, func(w *world) {
		w.see(eviction.NodeFSAvailable, 500<<20, 1000<<20)
		reclaimed := 0
		w.agent.reclaim = func(context.Context) (int64, error) {
			reclaimed++
			if reclaimed == 1 {
				w.see(eviction.NodeFSAvailable, 500<<20, 1000<<20)
			}
			return 0, nil
		}
		w.mu.Lock()
		w.disk = map[string]int64{"busy": 30 << 20}
		w.mu.Unlock()
		w.create(modest)
		w.create(greedy)
		w.see(eviction.NodeFSAvailable, 50<<20, 1000<<20)
		w.sleep(11 * time.Second)
		if reclaimed != 1 || !strings.HasPrefix(w.fate("greedy"), "Running") || !strings.Contains(w.conditions(), "DiskPressure(KubeletHasDiskPressure)") {
			t.Fatalf("reclaimed %d times, greedy is %s, %s", reclaimed, w.fate("greedy"), w.conditions())
		}
		w.see(eviction.NodeFSAvailable, 50<<20, 1000<<20)
		w.sleep(10 * time.Second)
		want := "Failed Evicted: The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 50Mi. Container busy was using 30Mi, request is 0, has larger consumption of ephemeral-storage. (True TerminationByKubelet)"
		if have := w.fate("greedy"); have != want || reclaimed < 2 {
			t.Errorf("greedy: %s\nwant %s; reclaimed %d times", have, want, reclaimed)
		}
	})
}

// Pods that have more on disk than their own limits allow are evicted; those that have no
// limit are not even measured.
func TestDiskLimits(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(`
metadata: {name: layer}
spec: {containers: [{name: writer, image: "localhost/hello:1", resources: {limits: {ephemeral-storage: 10Mi}}}, {name: other, image: "localhost/hello:1", resources: {limits: {ephemeral-storage: 10Mi}}}]}
`)
		w.create(`
metadata: {name: volume}
spec: {containers: [{name: web, image: "localhost/hello:1"}], volumes: [{name: data, emptyDir: {sizeLimit: 1Mi}}]}
`)
		w.create(strings.Replace(greedy, "name: v,", "name: data,", 1))
		fill := func(pod string, size int) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(w.dir, "uid-"+pod, "volumes/data/file"), make([]byte, size), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		fill("volume", 1<<19)
		fill("greedy", 8<<20)
		w.mu.Lock()
		w.disk = map[string]int64{"writer": 9 << 20, "busy": 1 << 40}
		w.mu.Unlock()
		w.sleep(30 * time.Second)
		for _, name := range []string{"layer", "volume", "greedy"} {
			if have := w.fate(name); !strings.HasPrefix(have, "Running : ") {
				t.Errorf("%s within its limits: %s", name, have)
			}
		}
		fill("volume", 2<<20)
		w.mu.Lock()
		w.disk["writer"] = 11 << 20
		w.mu.Unlock()
		w.sleep(15 * time.Second)
		for name, want := range map[string]string{
			"layer":  `Failed Evicted: Container writer exceeded its local ephemeral storage limit "10Mi". `,
			"volume": `Failed Evicted: Usage of EmptyDir volume "data" exceeds the limit "1Mi". `,
			"greedy": "Running : ",
		} {
			if have := w.fate(name); have != want {
				t.Errorf("%s: %s, want %s", name, have, want)
			}
		}
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// A daemon that dies between the decision and its end: the next one carries it out.
func TestEvictionGoesOn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create(greedy)
		w.stop()
		pod := w.pod("greedy")
		pod.Status.Reason, pod.Status.Message = "Evicted", "The node was low on resource: memory. "
		if err := w.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), pod, pod.Namespace); err != nil {
			t.Fatal(err)
		}
		w.start()
		w.sleep(5 * time.Second)
		if have, want := w.fate("greedy"), "Failed Evicted: The node was low on resource: memory. "; have != want || len(w.sandboxes()) != 0 {
			t.Errorf("have %s, want %s; %d sandboxes", have, want, len(w.sandboxes()))
		}
	})
}
