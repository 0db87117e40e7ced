package node

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/rundigitalplatform/rookery/node/eviction"
)

// preempting is kubelet's reason of a pod that a critical one takes the room of.
const preempting = "Preempting"

// retryAdmission is how often room is looked for that preempted pods are about to give back.
const retryAdmission = 200 * time.Millisecond

// victims are the pods whose end makes room for a critical one: as few and as little as can
// be, guaranteed ones only for what the others do not have, best-effort ones for the rest,
// as kubelet chooses. nil: there is no such room.
func (l *ledger) victims(pod *v1.Pod, have v1.ResourceList) []*v1.Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	need := v1.ResourceList{}
	for _, s := range l.short(pod, have) {
		need[s.name] = s.missing()
	}
	byClass := map[v1.PodQOSClass][]*v1.Pod{}
	var all []*v1.Pod
	for _, uid := range slices.Sorted(maps.Keys(l.pods)) {
		if other := l.pods[uid]; uid != pod.UID && preemptable(pod, other) {
			class := v1qos.GetPodQOS(other)
			byClass[class], all = append(byClass[class], other), append(all, other)
		}
	}
	if len(need) == 0 || len(without(need, all)) > 0 {
		return nil
	}
	effort, burst := byClass[v1.PodQOSBestEffort], byClass[v1.PodQOSBurstable]
	chosen := nearest(byClass[v1.PodQOSGuaranteed], without(need, slices.Concat(effort, burst)))
	chosen = append(chosen, nearest(burst, without(need, slices.Concat(effort, chosen)))...)
	return append(chosen, nearest(effort, without(need, chosen))...)
}

// preemptable: a critical pod takes the room of one that is not, or of lesser priority.
func preemptable(critical, other *v1.Pod) bool {
	return eviction.Critical(critical) && (!eviction.Critical(other) || corev1helpers.PodPriority(critical) > corev1helpers.PodPriority(other))
}

// gives is what the end of a pod leaves.
func gives(pod *v1.Pod, name v1.ResourceName) resource.Quantity {
	if name == v1.ResourcePods {
		return *resource.NewQuantity(1, resource.DecimalSI)
	}
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true})[name]
}

// without is what is still missing when those pods are gone.
func without(need v1.ResourceList, gone []*v1.Pod) v1.ResourceList {
	left := v1.ResourceList{}
	for name, n := range need {
		n = n.DeepCopy()
		for _, pod := range gone {
			n.Sub(gives(pod, name))
		}
		if n.Sign() > 0 {
			left[name] = n
		}
	}
	return left
}

// nearest chooses of the pods until nothing is missing: each time the one that leaves least
// of it, relative to what is missing; of equals the smaller one.
func nearest(pods []*v1.Pod, need v1.ResourceList) (chosen []*v1.Pod) {
	pods = slices.Clone(pods)
	for len(need) > 0 && len(pods) > 0 {
		distance := func(pod *v1.Pod) (d float64) {
			for name, n := range need {
				given := gives(pod, name)
				left := max(0, 1-given.AsApproximateFloat64()/n.AsApproximateFloat64())
				d += left * left
			}
			return d
		}
		best := slices.MinFunc(pods, func(a, b *v1.Pod) int {
			smaller := func(name v1.ResourceName) int {
				x := gives(a, name)
				return x.Cmp(gives(b, name))
			}
			return cmp.Or(cmp.Compare(distance(a), distance(b)), smaller(v1.ResourceMemory), smaller(v1.ResourceCPU))
		})
		chosen, need = append(chosen, best), without(need, []*v1.Pod{best})
		pods = slices.DeleteFunc(pods, func(p *v1.Pod) bool { return p == best })
	}
	return chosen
}

// preempt makes room for a critical pod that was refused for want of it. True: pods have
// been told to end, or are about to, and admission is to be tried again.
func (a *Agent) preempt(pod *v1.Pod, no rejection) bool {
	if !eviction.Critical(pod) || !strings.HasPrefix(no.reason, outOfPrefix) {
		return false
	}
	victims := a.ledger.victims(pod, a.node.allocatable())
	for _, victim := range victims {
		if w := a.worker(victim.UID); w != nil {
			a.spawn(w.preempted) // it has a lock of its own
		}
	}
	return len(victims) > 0
}

// preempted ends the pod for a critical one, unless it ends already.
func (w *worker) preempted() {
	w.mu.Lock()
	if !w.halt.Since.IsZero() || w.closed {
		w.mu.Unlock()
		return
	}
	pod, grace := w.pod, podGrace(w.pod)
	w.giveUp(preempting, "Preempted in order to admit critical pod", grace, &v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, LastTransitionTime: metav1.Now(), Reason: v1.PodReasonTerminationByKubelet,
		Message: "Pod was preempted by Kubelet to accommodate a critical pod.",
	})
	w.mu.Unlock()
	w.a.events.Event(pod, v1.EventTypeWarning, preempting, "Preempted in order to admit critical pod")
	w.a.log.Warn("pod is preempted by a critical one", "pod", w.name())
	w.kick()
}
