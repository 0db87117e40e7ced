package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/devices"
)

// A pod that was bound here without room for it is turned away, in kubelet's words.
func TestAdmission(t *testing.T) {
	inWorld(t, func(w *world) {
		have := w.agent.node.allocatable()
		ask := func(name, requests string) string {
			t.Helper()
			w.create(fmt.Sprintf("metadata: {name: %s}\nspec: {containers: [{name: web, image: 'localhost/hello:1', resources: {requests: {%s}, limits: {%s}}}]}", name, requests, requests))
			return w.fate(name)
		}
		if fate := ask("fits", "cpu: 100m, memory: 64Mi"); !strings.HasPrefix(fate, "Running : ") {
			t.Errorf("one that fits: %s", fate)
		}
		cpu, memory := have.Cpu().MilliValue(), have.Memory().Value()
		for name, tt := range map[string]struct{ requests, want string }{
			"cpu":    {fmt.Sprintf("cpu: %dm, memory: 1Ki", cpu-50), fmt.Sprintf("Failed OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: %d, used: 100, capacity: %d", cpu-50, cpu)},
			"memory": {fmt.Sprintf("memory: %d", memory), fmt.Sprintf("Failed OutOfmemory: Pod was rejected: Node didn't have enough resource: memory, requested: %d, used: %d, capacity: %d", memory, 64<<20, memory)},
			"huge":   {"hugepages-2Mi: 4Mi, memory: 1Mi", "Failed OutOfhugepages-2Mi: Pod was rejected: Node didn't have enough resource: hugepages-2Mi, requested: 4194304, used: 0, capacity: 0"},
			"absent": {"example.com/none: 1", "Failed OutOfexample.com/none: Pod was rejected: Node didn't have enough resource: example.com/none, requested: 1, used: 0, capacity: 0"},
		} {
			if fate := ask(name, tt.requests); fate != tt.want {
				t.Errorf("%s: %s\nwant %s", name, fate, tt.want)
			}
		}
		if n := len(w.sandboxes()); n != 1 {
			t.Errorf("%d sandboxes, want that of the one that fits", n)
		}
		// What ended, or was turned away, takes nothing.
		w.script["once"] = exits(0)
		w.create(fmt.Sprintf("metadata: {name: done}\nspec: {restartPolicy: Never, containers: [{name: once, image: 'localhost/hello:1', resources: {requests: {cpu: %dm}}}]}", cpu-200))
		w.sleep(time.Second)
		if fate := ask("after", fmt.Sprintf("cpu: %dm", cpu-200)); !strings.HasPrefix(fate, "Running : ") {
			t.Errorf("after one that is done: %s", fate)
		}
		// One that runs is not turned away by a daemon that has less to give.
		w.stop()
		w.config.Reserved = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1000")}
		w.start()
		for _, name := range []string{"fits", "after"} {
			if fate := w.fate(name); !strings.HasPrefix(fate, "Running : ") {
				t.Errorf("%s with the next daemon: %s", name, fate)
			}
		}
		if fate := ask("more", "cpu: 1m"); !strings.HasPrefix(fate, "Failed OutOfcpu") {
			t.Errorf("one more: %s", fate)
		}
		if !strings.Contains(w.told(), "Pod/cpu Warning OutOfcpu: Node didn't have enough resource: cpu") {
			t.Errorf("events:\n%s", w.told())
		}
	})
}

// More than an int64 has room for in thousandths is still more than there is.
func TestNoRoomForVeryMuch(t *testing.T) {
	table, err := devices.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	l, critical := newLedger(table), int32(2_000_000_000)
	have := v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10")}
	ask := func(name string, requests v1.ResourceList) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{
			Priority:   &critical,
			Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: requests}}},
		}}
	}
	small := ask("small", v1.ResourceList{v1.ResourceMemory: resource.MustParse("6Gi")})
	small.Spec.Priority = nil
	if _, err := l.admit(small, have); err != nil {
		t.Fatal(err)
	}
	for _, memory := range []string{"9Pi", "7Ei"} {
		pod := ask(memory, v1.ResourceList{v1.ResourceMemory: resource.MustParse(memory)})
		var no rejection
		if _, err := l.admit(pod, have); !errors.As(err, &no) || no.reason != "OutOfmemory" {
			t.Errorf("%s of memory: %v", memory, err)
		}
		if gone := l.victims(pod, have); len(gone) > 0 {
			t.Errorf("%s of memory: %d pods would end for it in vain", memory, len(gone))
		}
	}
	if gone := l.victims(ask("fits", v1.ResourceList{v1.ResourceMemory: resource.MustParse("4Gi")}), have); len(gone) != 1 {
		t.Errorf("%d pods would end for one that fits then, want 1", len(gone))
	}
}

// As many pods as the Node allows, and not one more.
func TestOutOfPods(t *testing.T) {
	table, err := devices.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	l := newLedger(table)
	have := v1.ResourceList{v1.ResourcePods: resource.MustParse("2")}
	for i, want := range []string{"", "", "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2", ""} {
		pod := &v1.Pod{}
		pod.UID = types.UID(fmt.Sprint(i))
		_, err := l.admit(pod, have)
		if text := fmt.Sprint(err); text != want && (want != "" || err != nil) {
			t.Errorf("pod %d: %v", i, err)
		}
		if i == 2 {
			l.release("0")
		}
	}
}

// Devices are advertised while they are there, given to one container each, remembered by
// the next daemon, and free again when their pod has ended.
func TestDevices(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		w.config.Devices = map[v1.ResourceName][]string{"example.com/sink": {"/dev/null", "/dev/zero", "/dev/nosuch"}}
		w.config.Extended = map[v1.ResourceName]int64{"example.com/licence": 3}
		w.start()
		node, err := w.client.CoreV1().Nodes().Get(context.Background(), "p1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[v1.ResourceName]int64{"example.com/sink": 2, "example.com/licence": 3} {
			for _, list := range []v1.ResourceList{node.Status.Capacity, node.Status.Allocatable} {
				if q := list[name]; q.Value() != want {
					t.Errorf("the node says %s of %s, want %d", q.String(), name, want)
				}
			}
		}
		const pod = "metadata: {name: %[1]s}\nspec: {containers: [{name: %[2]s, image: 'localhost/hello:1', resources: {requests: {example.com/sink: %[3]d, example.com/licence: 1}, limits: {example.com/sink: %[3]d, example.com/licence: 1}}}]}"
		given := func(container string) string {
			t.Helper()
			for _, s := range w.sandboxes() {
				for _, c := range s.Containers {
					if c.Labels["io.kubernetes.container.name"] == container {
						spec, err := w.machine.Spec(c.ID)
						if err != nil {
							t.Fatal(err)
						}
						return fmt.Sprint(spec.Devices)
					}
				}
			}
			return "none"
		}
		w.create(fmt.Sprintf(pod, "a", "first", 1))
		w.create(fmt.Sprintf(pod, "b", "second", 1))
		if a, b := given("first"), given("second"); a != "[/dev/null]" || b != "[/dev/zero]" {
			t.Errorf("given %s and %s", a, b)
		}
		w.create(fmt.Sprintf(pod, "c", "third", 1))
		if have, want := w.fate("c"), "Failed OutOfexample.com/sink: Pod was rejected: Node didn't have enough resource: example.com/sink, requested: 1, used: 2, capacity: 2"; have != want {
			t.Errorf("c: %s, want %s", have, want)
		}
		w.stop()
		w.start()
		w.delete("b", 0)
		w.sleep(time.Second)
		w.create(fmt.Sprintf(pod, "d", "fourth", 1))
		if have := given("fourth"); have != "[/dev/zero]" {
			t.Errorf("after a restart and a pod that is gone: %s, %s", have, w.fate("d"))
		}
		// One that went away after it was counted.
		w.agent.ledger.devices.Restore("somebody", map[string][]string{"x": {"/dev/null"}})
		w.delete("a", 0)
		w.sleep(time.Second)
		w.agent.ledger.devices.Restore("somebody", map[string][]string{"x": {"/dev/null"}})
		w.create(fmt.Sprintf(pod, "e", "fifth", 1))
		want := "Failed UnexpectedAdmissionError: Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/sink. Requested: 1, Available: 0, which is unexpected"
		if have := w.fate("e"); have != want {
			t.Errorf("e: %s, want %s", have, want)
		}
	})
}
