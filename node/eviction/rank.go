package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Usage is what a pod uses now.
type Usage struct {
	Memory    int64 // working set
	Processes int64
	// Volumes are its directories on nodefs; Layers what its containers wrote, and their logs, on imagefs.
	Volumes, Layers runtime.Space
	Containers      []ContainerUsage
}

// ContainerUsage is a container's; Disk counts what it wrote and its log.
type ContainerUsage struct {
	Name         string
	Memory, Disk int64
}

// Critical pods are never evicted: priority system-cluster-critical or above.
func Critical(pod *v1.Pod) bool {
	const systemCritical = 2_000_000_000 // scheduling.SystemCriticalPriority
	return corev1helpers.PodPriority(pod) >= systemCritical
}

// Rank orders pods by who has to go first for a threshold: those that use more than they
// request, then by priority, then by how much more. For process ids only priority and use
// count. A pod whose usage is not known goes before the others. oneDisk says that nodefs and
// imagefs are the same.
func Rank(t Threshold, pods []*v1.Pod, oneDisk bool, used func(*v1.Pod) (Usage, bool)) {
	type entry struct {
		known    bool
		exceeds  bool
		priority int32
		above    int64
	}
	entries := make(map[*v1.Pod]entry, len(pods))
	for _, pod := range pods {
		e := entry{priority: corev1helpers.PodPriority(pod)}
		if u, ok := used(pod); ok {
			have, request := t.of(pod, u, oneDisk)
			e.known, e.exceeds, e.above = true, have > request && t.Resource() != pids, have-request
		}
		entries[pod] = e
	}
	first := func(a, b bool) int { // the one that is
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(pods, func(p, q *v1.Pod) int {
		a, b := entries[p], entries[q]
		if !a.known || !b.known {
			return first(!a.known, !b.known)
		}
		return cmp.Or(first(a.exceeds, b.exceeds), cmp.Compare(a.priority, b.priority), cmp.Compare(b.above, a.above))
	})
}

// of the threshold's resource is what a pod uses and requests.
func (t Threshold) of(pod *v1.Pod, u Usage, oneDisk bool) (used, request int64) {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	switch t.Signal {
	case MemoryAvailable:
		return u.Memory, requests.Memory().Value()
	case PIDAvailable:
		return u.Processes, 0
	}
	space := u.Volumes
	if t.Signal == ImageFSAvailable || t.Signal == ImageFSInodesFree {
		space = u.Layers
	}
	if oneDisk {
		space = u.Volumes.Add(u.Layers)
	}
	if t.Resource() == inodes {
		return space.Inodes, 0
	}
	return space.Bytes, requests.StorageEphemeral().Value()
}

// Message is what an evicted pod is told, and the annotations of its event, in kubelet's
// words. Usage may be nil: not known.
func Message(t Threshold, starved []Threshold, seen Observations, pod *v1.Pod, u *Usage) (string, map[string]string) {
	short := t.Resource()
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %v. ", short)
	for _, s := range starved {
		if o, ok := seen[s.Signal]; ok && s.Resource() == short {
			fmt.Fprintf(&b, "Threshold quantity: %v, available: %v. ", quantity(s.Signal, s.Value.Of(o.Capacity)), quantity(s.Signal, o.Available))
			break
		}
	}
	notes := map[string]string{}
	if u == nil {
		return b.String(), notes
	}
	if whole := pod.Spec.Resources; whole != nil && short == v1.ResourceMemory {
		if request, ok := whole.Requests[short]; ok {
			have := quantity(t.Signal, u.Memory)
			fmt.Fprintf(&b, "Pod %s was using %s, request is %s, has larger consumption of %v. ", pod.Name, have, request.String(), short)
			notes["offending_pod"], notes["offending_pod_usage"] = pod.Name, have
		}
	}
	var names, amounts []string
	for _, c := range u.Containers {
		have := int64(-1)
		switch short {
		case v1.ResourceMemory:
			have = c.Memory
		case v1.ResourceEphemeralStorage:
			have = c.Disk
		}
		request, ours := requestOf(pod, c.Name, short)
		if !ours || have <= request.Value() {
			continue
		}
		fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, quantity(t.Signal, have), request.String(), short)
		names, amounts = append(names, c.Name), append(amounts, quantity(t.Signal, have))
	}
	notes["offending_containers"], notes["offending_containers_usage"] = strings.Join(names, ","), strings.Join(amounts, ",")
	notes["starved_resource"] = string(short)
	return b.String(), notes
}

// requestOf a container; false for an ephemeral one, which cannot request anything.
func requestOf(pod *v1.Pod, name string, of v1.ResourceName) (resource.Quantity, bool) {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return list[i].Resources.Requests[of], true
			}
		}
	}
	return resource.Quantity{}, false
}

func quantity(s Signal, n int64) string {
	format := resource.BinarySI
	switch s {
	case NodeFSInodesFree, ImageFSInodesFree, PIDAvailable:
		format = resource.DecimalSI
	}
	return resource.NewQuantity(n, format).String()
}

// Refuses says whether a pod may not begin on a Node with these conditions, and why: only
// memory is short and it requests some, or tolerates that, or it is critical, then it may.
func Refuses(conditions []v1.NodeConditionType, pod *v1.Pod, bestEffort bool) (string, bool) {
	if len(conditions) == 0 || Critical(pod) {
		return "", false
	}
	if len(conditions) == 1 && conditions[0] == v1.NodeMemoryPressure {
		taint := v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
		if !bestEffort || slices.ContainsFunc(pod.Spec.Tolerations, func(t v1.Toleration) bool { return tolerates(t, taint) }) {
			return "", false
		}
	}
	return fmt.Sprintf("The node had condition: %v. ", conditions), true
}

// tolerates is for a taint without a value.
func tolerates(t v1.Toleration, taint v1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	return t.Operator == v1.TolerationOpExists || t.Key != "" && t.Value == taint.Value
}
