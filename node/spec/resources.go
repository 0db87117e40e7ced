package spec

import (
	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/rundigitalplatform/rookery/runtime"
)

// The kernel's smallest values, and the period that every CPU limit is a share of.
const (
	minShares   = 2
	maxShares   = 262144
	cpuPeriod   = 100000
	minCPUQuota = 1000
)

// Resources are what a container of the pod is bounded by: its own limits, or where it
// has none the pod's. It is all of them that is enforced.
func Resources(pod *v1.Pod, c *v1.Container) runtime.Resources {
	request, limit := c.Resources.Requests.Cpu(), c.Resources.Limits.Cpu()
	memory := c.Resources.Limits.Memory()
	if whole := pod.Spec.Resources; whole != nil {
		if limit.IsZero() {
			limit = whole.Limits.Cpu()
		}
		if memory.IsZero() {
			memory = whole.Limits.Memory()
		}
	}
	if _, asked := c.Resources.Requests[v1.ResourceCPU]; !asked {
		request = limit
	}
	out := runtime.Resources{CPUShares: shares(request.MilliValue()), MemoryLimit: memory.Value()}
	setQuota(&out, limit.MilliValue())
	return out
}

// PodResources weigh the pod as a whole against others by what it requests, and bound it
// by what its own limits say. Limits of containers are not summed up: each is enforced.
func PodResources(pod *v1.Pod) runtime.Resources {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	out := runtime.Resources{CPUShares: shares(requests.Cpu().MilliValue())}
	if whole := pod.Spec.Resources; whole != nil {
		setQuota(&out, whole.Limits.Cpu().MilliValue())
		out.MemoryLimit = whole.Limits.Memory().Value()
	}
	return out
}

// setQuota is for a limit in thousandths of a CPU; 0: none.
func setQuota(out *runtime.Resources, limit int64) {
	if limit > 0 {
		out.CPUPeriod = cpuPeriod
		out.CPUQuota = max(limit*cpuPeriod/1000, minCPUQuota)
	}
}

func applyResources(out *runtime.ContainerSpec, pod *v1.Pod, c *v1.Container, memoryCapacity int64) {
	out.Resources = Resources(pod, c)
	adj := oomScoreAdj(pod, c, memoryCapacity)
	out.OOMScoreAdj = &adj
}

func shares(milli int64) uint64 {
	return uint64(min(max(milli*1024/1000, minShares), maxShares))
}

// oomScoreAdj follows kubelet's policy: guaranteed pods go last, best-effort ones
// first, and between them what uses more than it requested goes earlier.
func oomScoreAdj(pod *v1.Pod, c *v1.Container, capacity int64) int {
	const guaranteed, bestEffort = -997, 1000
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= 2000001000 { // system-node-critical
		return guaranteed
	}
	switch v1qos.GetPodQOS(pod) {
	case v1.PodQOSGuaranteed:
		return guaranteed
	case v1.PodQOSBestEffort:
		return bestEffort
	}
	if capacity <= 0 {
		return bestEffort - 1
	}
	spare := spareRequest(pod)
	request := c.Resources.Requests.Memory().Value() + spare
	if IsSidecar(c) {
		// A sidecar must not die before what it serves.
		least := int64(-1)
		for i := range pod.Spec.Containers {
			if r := pod.Spec.Containers[i].Resources.Requests.Memory().Value(); least < 0 || r < least {
				least = r
			}
		}
		request = max(request, least+spare)
	}
	return int(min(max(1000-1000*request/capacity, 1000+guaranteed), bestEffort-1))
}

// spareRequest is each container's share of the memory that the pod as a whole requests
// beyond what its containers do.
func spareRequest(pod *v1.Pod) int64 {
	if pod.Spec.Resources == nil {
		return 0
	}
	whole := pod.Spec.Resources.Requests.Memory().Value()
	containers := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	return max(whole-containers.Memory().Value(), 0) / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
}

// IsSidecar says whether an init container keeps running beside the pod's containers.
func IsSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}
