package controller

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a Node's conditions say when gossip has lost its peer. The reason is
// upstream's, which people and tools look for.
const (
	reasonUnknown  = "NodeStatusUnknown"
	messageUnknown = "gossip lost this peer: no other peer reaches it"
)

// agentConditions are those that only the node's agent can know.
func agentConditions() [4]corev1.NodeConditionType {
	return [...]corev1.NodeConditionType{
		corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
	}
}

// verdict is what should become of a Node. The zero value is: leave it as it is.
type verdict struct {
	remove bool // the peer has no record any more
	// conditions to set; nil: no change.
	conditions []corev1.NodeCondition
	// taints to set instead of the present ones, if retaint.
	taints  []corev1.Taint
	retaint bool
	// silence says that the node's pods cannot be Ready, because nobody can know it.
	silence bool
}

// decide is the whole of node health: a pure function of what is seen.
//
// A node's peer that is dead makes all its conditions Unknown; the taints follow
// from the conditions, as upstream's node lifecycle controller has them, so a
// node that returns is used again as soon as its agent says Ready. While fewer
// than a majority of all peers live, nothing is held against a node: it is this
// peer that is cut off, and its term is about to end.
func decide(nodes []*corev1.Node, members map[string]Member, settled bool, now time.Time) map[string]verdict {
	verdicts := map[string]verdict{}
	if len(members) == 0 {
		return verdicts
	}
	majority := 2*countAlive(members) > len(members)
	for _, node := range nodes {
		member, known := members[node.Name]
		switch {
		case !known:
			// What a minority does not know of may well be a peer that the majority took in.
			verdicts[node.Name] = verdict{remove: majority}
		case member.Liveness == Alive:
			verdicts[node.Name] = retaint(node, node.Status.Conditions, now)
		case member.Liveness == Unknown && !settled, !majority:
			// Wait and see.
		default:
			verdicts[node.Name] = lost(node, now)
		}
	}
	return verdicts
}

func countAlive(members map[string]Member) int {
	n := 0
	for _, m := range members {
		if m.Liveness == Alive {
			n++
		}
	}
	return n
}

// lost is the verdict on a node whose peer is dead.
func lost(node *corev1.Node, now time.Time) verdict {
	conditions := slices.Clone(node.Status.Conditions)
	changed := false
	for _, kind := range agentConditions() {
		i := slices.IndexFunc(conditions, func(c corev1.NodeCondition) bool { return c.Type == kind })
		if i < 0 {
			conditions = append(conditions, corev1.NodeCondition{Type: kind})
			i = len(conditions) - 1
		}
		c := &conditions[i]
		if c.Status == corev1.ConditionUnknown {
			continue
		}
		c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionUnknown, reasonUnknown, messageUnknown, metav1.NewTime(now)
		changed = true
	}
	v := retaint(node, conditions, now)
	v.silence = true
	if changed {
		v.conditions = conditions
	}
	return v
}

// retaint compares the taints that node health owns with those that there should be.
func retaint(node *corev1.Node, conditions []corev1.NodeCondition, now time.Time) verdict {
	want := wanted(node.Spec.Unschedulable, conditions)
	var taints []corev1.Taint
	changed := false
	for _, taint := range node.Spec.Taints {
		i := slices.IndexFunc(want, func(w corev1.Taint) bool { return taint.MatchTaint(&w) })
		switch {
		case i >= 0:
			want = slices.Delete(want, i, i+1)
			taints = append(taints, taint)
		case owned(taint):
			changed = true
		default:
			taints = append(taints, taint)
		}
	}
	for _, taint := range want {
		if taint.Effect == corev1.TaintEffectNoExecute {
			// tolerationSeconds count from here.
			added := metav1.NewTime(now)
			taint.TimeAdded = &added
		}
		taints, changed = append(taints, taint), true
	}
	return verdict{taints: taints, retaint: changed}
}

// wanted are the taints that follow from a node's conditions and from its being cordoned.
func wanted(unschedulable bool, conditions []corev1.NodeCondition) []corev1.Taint {
	var taints []corev1.Taint
	add := func(key string, effects ...corev1.TaintEffect) {
		for _, effect := range effects {
			taints = append(taints, corev1.Taint{Key: key, Effect: effect})
		}
	}
	switch status(conditions, corev1.NodeReady) {
	case corev1.ConditionTrue:
	case corev1.ConditionUnknown:
		add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
	default: // False, or not said yet
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
	}
	for _, p := range [...]struct {
		kind corev1.NodeConditionType
		key  string
	}{
		{corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure},
		{corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure},
		{corev1.NodePIDPressure, corev1.TaintNodePIDPressure},
		{corev1.NodeNetworkUnavailable, corev1.TaintNodeNetworkUnavailable},
	} {
		if status(conditions, p.kind) == corev1.ConditionTrue {
			add(p.key, corev1.TaintEffectNoSchedule)
		}
	}
	if unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	return taints
}

// owned tells the taints that node health sets and removes from those of users.
func owned(t corev1.Taint) bool {
	switch t.Key {
	case corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady:
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	case corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeUnschedulable:
		return t.Effect == corev1.TaintEffectNoSchedule
	}
	return false
}

// status of a condition; empty if it is not there.
func status(conditions []corev1.NodeCondition, kind corev1.NodeConditionType) corev1.ConditionStatus {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}
