package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/devices"
)

// sized is a pod of a class: what it requests of cpu, and as a limit too if it is guaranteed.
func sized(name string, priority int32, class v1.PodQOSClass, cpu string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{Priority: &priority, Containers: []v1.Container{{Name: "c"}}}}
	list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("10Mi")}
	r := &p.Spec.Containers[0].Resources
	switch class {
	case v1.PodQOSGuaranteed:
		r.Requests, r.Limits = list, list
	case v1.PodQOSBurstable:
		r.Requests = list
	}
	return p
}

func TestVictims(t *testing.T) {
	const critical = 2_000_000_000
	have := v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10")}
	few := v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("3")}
	burst, sure, effort := v1.PodQOSBurstable, v1.PodQOSGuaranteed, v1.PodQOSBestEffort
	for name, tt := range map[string]struct {
		have v1.ResourceList
		here []*v1.Pod
		pod  *v1.Pod
		want string
	}{
		"the one that fits best":      {have, []*v1.Pod{sized("a", 0, burst, "500m"), sized("b", 0, burst, "200m"), sized("c", 0, burst, "300m")}, sized("x", critical, burst, "200m"), "b"},
		"one rather than two":         {have, []*v1.Pod{sized("a", 0, burst, "500m"), sized("b", 0, burst, "200m"), sized("c", 0, burst, "300m")}, sized("x", critical, burst, "400m"), "a"},
		"two":                         {have, []*v1.Pod{sized("a", 0, burst, "500m"), sized("b", 0, burst, "200m"), sized("c", 0, burst, "300m")}, sized("x", critical, burst, "800m"), "a c"},
		"guaranteed ones last":        {have, []*v1.Pod{sized("a", 0, sure, "500m"), sized("b", 0, burst, "500m")}, sized("x", critical, burst, "500m"), "b"},
		"guaranteed ones too":         {have, []*v1.Pod{sized("a", 0, sure, "500m"), sized("b", 0, burst, "500m")}, sized("x", critical, burst, "600m"), "a b"},
		"critical ones stay":          {have, []*v1.Pod{sized("a", critical, burst, "800m"), sized("b", 0, burst, "200m")}, sized("x", critical, burst, "600m"), ""},
		"unless of lesser priority":   {have, []*v1.Pod{sized("a", critical, burst, "800m")}, sized("x", critical+1000, burst, "600m"), "a"},
		"more than there is":          {have, []*v1.Pod{sized("a", 0, burst, "800m")}, sized("x", critical, burst, "2"), ""},
		"a place: best effort first":  {few, []*v1.Pod{sized("a", 0, sure, "100m"), sized("b", 0, burst, "100m"), sized("c", 0, effort, "0")}, sized("x", critical, burst, "100m"), "c"},
		"not for ordinary pods":       {have, []*v1.Pod{sized("a", 0, burst, "800m")}, sized("x", 1000, burst, "600m"), ""},
		"a place and what it runs on": {few, []*v1.Pod{sized("a", 0, burst, "700m"), sized("b", 0, burst, "100m"), sized("c", 0, effort, "0")}, sized("x", critical, burst, "500m"), "a"},
	} {
		t.Run(name, func(t *testing.T) {
			table, err := devices.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			l := newLedger(table)
			for _, p := range tt.here {
				l.keep(p, nil)
			}
			var names []string
			for _, p := range l.victims(tt.pod, tt.have) {
				names = append(names, p.Name)
			}
			slices.Sort(names)
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("victims are %q, want %q", got, tt.want)
			}
		})
	}
}

// A critical pod that was bound here without room for it waits until others have ended
// for it; an ordinary one is turned away.
func TestPreemption(t *testing.T) {
	inWorld(t, func(w *world) {
		have := w.agent.node.allocatable()
		cpu := have.Cpu().MilliValue()
		ask := func(name, more string, milli int64) {
			w.create(fmt.Sprintf("metadata: {name: %s}\nspec: {%sterminationGracePeriodSeconds: 5, containers: [{name: %s, image: 'localhost/hello:1', resources: {requests: {cpu: %dm}}}]}", name, more, name, milli))
		}
		w.mu.Lock()
		w.script["slow"] = nil
		w.mu.Unlock()
		ask("slow", "", cpu/2)
		ask("quick", "", cpu/4)
		w.sleep(time.Second)
		ask("ordinary", "priority: 1000, ", cpu/2)
		w.sleep(time.Second)
		if fate := w.fate("ordinary"); !strings.HasPrefix(fate, "Failed OutOfcpu") {
			t.Errorf("ordinary: %s", fate)
		}
		w.clear()
		ask("vital", "priority: 2000000000, ", 5*cpu/8)
		w.sleep(10 * time.Second)
		if fate := w.fate("vital"); !strings.HasPrefix(fate, "Running") {
			t.Errorf("vital: %s", fate)
		}
		s := w.pod("slow").Status
		if s.Phase != v1.PodFailed || s.Reason != "Preempting" || s.Message != "Preempted in order to admit critical pod" {
			t.Errorf("slow: %s %s %s", s.Phase, s.Reason, s.Message)
		}
		if !slices.ContainsFunc(s.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue }) {
			t.Errorf("slow has the conditions %+v", s.Conditions)
		}
		if fate := w.fate("quick"); !strings.HasPrefix(fate, "Running") {
			t.Errorf("quick: %s", fate)
		}
		if notes := w.notes(); strings.Index(notes, "end slow") > strings.Index(notes, "start vital") || !strings.Contains(notes, "end slow") {
			t.Errorf("in order:\n%s", notes)
		}
		w.wantEvents("slow", "Warning Preempting Preempted in order to admit critical pod")
		ask("greedy", "priority: 2000000000, ", 10*cpu)
		w.sleep(time.Second)
		if fate := w.fate("greedy"); !strings.HasPrefix(fate, "Failed OutOfcpu") {
			t.Errorf("greedy: %s", fate)
		}
		if fate := w.fate("quick"); !strings.HasPrefix(fate, "Running") {
			t.Errorf("quick after one that does not fit anyway: %s", fate)
		}
	})
}
