package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A pod whose refusal would be a policy's is not tried while there is another, and where there is none
// that is known.
func TestPodsToTry(t *testing.T) {
	pod := func(node, name, app string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{"app": app}},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
	}
	policy := func(app string, kinds ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, PolicyTypes: kinds,
		}}
	}
	pods := []*corev1.Pod{pod("a", "1", "db"), pod("a", "2", "web"), pod("b", "3", "db"), pod("c", "4", "out"), pod("dead", "5", "web")}
	got := onePodEach(pods, []*networkingv1.NetworkPolicy{policy("db"), policy("out", networkingv1.PolicyTypeEgress)}, func(node string) bool { return node != "dead" })
	for node, want := range map[string]string{"a": "2", "b": "", "c": "4"} {
		name := ""
		if got[node] != nil {
			name = got[node].Name
		}
		if _, known := got[node]; !known || name != want {
			t.Errorf("%s: pod %q, known %v; want %q", node, name, known, want)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d peers, want 3", len(got))
	}
}
