package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testNode reads "name ready=True mem=True cordoned taint=key:Effect …".
func testNode(t *testing.T, text string) *corev1.Node {
	t.Helper()
	fields := strings.Fields(text)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fields[0]}}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		kinds := map[string]corev1.NodeConditionType{"ready": corev1.NodeReady, "mem": corev1.NodeMemoryPressure, "disk": corev1.NodeDiskPressure}
		switch {
		case key == "cordoned":
			node.Spec.Unschedulable = true
		case key == "taint":
			k, effect, _ := strings.Cut(value, ":")
			node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: strings.Replace(k, "~", "node.kubernetes.io", 1), Effect: corev1.TaintEffect(effect)})
		case kinds[key] != "":
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: kinds[key], Status: corev1.ConditionStatus(value)})
		default:
			t.Fatalf("what is %q?", f)
		}
	}
	return node
}

// show renders a verdict: "-" is leave it alone.
func show(v verdict) string {
	var out []string
	if v.remove {
		out = append(out, "remove")
	}
	if v.conditions != nil {
		out = append(out, "ready="+string(status(v.conditions, corev1.NodeReady)))
	}
	if v.retaint {
		var taints []string
		for _, taint := range v.taints {
			taints = append(taints, strings.Replace(taint.Key, "node.kubernetes.io", "~", 1)+":"+string(taint.Effect))
		}
		slices.Sort(taints)
		out = append(out, "taints="+strings.Join(taints, ","))
	}
	if v.silence {
		out = append(out, "silence")
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, " ")
}

func TestDecide(t *testing.T) {
	const (
		notReady    = "taints=~/not-ready:NoExecute,~/not-ready:NoSchedule"
		unreachable = "taints=~/unreachable:NoExecute,~/unreachable:NoSchedule"
		bothTaints  = " taint=~/unreachable:NoExecute taint=~/unreachable:NoSchedule"
	)
	for _, tt := range []struct{ why, members, node, want string }{
		{"alive and ready", "a+ b+ c+", "b ready=True", "-"},
		{"agent says not ready", "a+ b+ c+", "b ready=False", notReady},
		{"agent has said nothing yet", "a+ b+ c+", "b", notReady},
		{"dies", "a+ b- c+", "b ready=True", "ready=Unknown " + unreachable + " silence"},
		{"dead, conditions done, taints not", "a+ b- c+", "b ready=Unknown mem=Unknown disk=Unknown", "ready=Unknown " + unreachable + " silence"},
		{"dies not ready", "a+ b- c+", "b ready=False taint=~/not-ready:NoExecute taint=~/not-ready:NoSchedule", "ready=Unknown " + unreachable + " silence"},
		{"back, agent has not spoken", "a+ b+ c+", "b ready=Unknown" + bothTaints, "-"},
		{"back and ready", "a+ b+ c+", "b ready=True" + bothTaints, "taints="},
		{"back and ready, user's taints stay", "a+ b+ c+", "b ready=True taint=gpu:NoSchedule" + bothTaints, "taints=gpu:NoSchedule"},
		{"cordoned", "a+ b+ c+", "b ready=True cordoned", "taints=~/unschedulable:NoSchedule"},
		{"uncordoned", "a+ b+ c+", "b ready=True taint=~/unschedulable:NoSchedule", "taints="},
		{"memory pressure", "a+ b+ c+", "b ready=True mem=True", "taints=~/memory-pressure:NoSchedule"},
		{"pressure over", "a+ b+ c+", "b ready=True mem=False taint=~/memory-pressure:NoSchedule", "taints="},
		{"no record", "a+ c+", "b ready=True", "remove"},
		{"no record, but this peer is cut off", "a+ c- d-", "b ready=True", "-"},
		{"nobody known yet", "", "b ready=True", "-"},
		{"cut off: nobody is evicted", "a+ b- c-", "b ready=True", "-"},
		{"cut off: who is alive is still judged", "a+ b- c-", "a ready=True" + bothTaints, "taints="},
		{"half is no majority", "a+ b- c- d+", "b ready=True", "-"},
		{"a witness counts", "a+ b- w+", "b ready=True", "ready=Unknown " + unreachable + " silence"},
		{"not heard of yet", "a+ b? c+", "b ready=True", "-"},
		{"never heard of", "settled a+ b? c+", "b ready=True", "ready=Unknown " + unreachable + " silence"},
	} {
		t.Run(tt.why, func(t *testing.T) {
			members, settled := map[string]Member{}, false
			for _, m := range strings.Fields(tt.members) {
				if m == "settled" {
					settled = true
					continue
				}
				members[m[:1]] = Member{Liveness: map[byte]Liveness{'+': Alive, '-': Dead, '?': Unknown}[m[1]], Witness: m[0] == 'w'}
			}
			node := testNode(t, tt.node)
			before := fmt.Sprint(node)
			now := time.Unix(1000, 0)
			v := decide([]*corev1.Node{node}, members, settled, now)[node.Name]
			if got := show(v); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if fmt.Sprint(node) != before {
				t.Error("the shared object was changed")
			}
			// Carried out, the same view must leave the node alone: no writing for ever.
			if v.conditions != nil {
				node.Status.Conditions = v.conditions
			}
			if v.retaint {
				node.Spec.Taints = v.taints
			}
			if again := decide([]*corev1.Node{node}, members, settled, now)[node.Name]; again.retaint || again.conditions != nil {
				t.Errorf("a second look says: %s", show(again))
			}
		})
	}
}

func TestSilenced(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	got := silenced(pod, time.Unix(1000, 0))
	if got == nil || got.Status.Conditions[1].Status != corev1.ConditionFalse || got.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Fatalf("got %v", got)
	}
	if pod.Status.Conditions[1].Status != corev1.ConditionTrue {
		t.Error("the shared object was changed")
	}
	if silenced(got, time.Now()) != nil {
		t.Error("silenced twice")
	}
}

func TestGarbage(t *testing.T) {
	var pods []*corev1.Pod
	add := func(name, node string, phase corev1.PodPhase, created int64) {
		pods = append(pods, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(created, 0)},
			Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}})
	}
	add("running", "a", corev1.PodRunning, 1)
	add("waiting", "", corev1.PodPending, 1)
	add("orphan", "gone", corev1.PodRunning, 1)
	for i := range maxFinished + 2 {
		add(fmt.Sprintf("done-%d", i), "a", corev1.PodSucceeded, int64(10000-i))
	}
	orphans, finished := garbage(pods, func(node string) bool { return node == "a" })
	if len(orphans) != 1 || orphans[0].Name != "orphan" {
		t.Errorf("orphans: %v", orphans)
	}
	if len(finished) != 2 || finished[0].Name != fmt.Sprintf("done-%d", maxFinished+1) {
		t.Errorf("finished: %d, want the 2 oldest", len(finished))
	}
}
