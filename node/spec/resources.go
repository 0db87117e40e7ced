package spec

import (
	v1 "k8s.io/api/core/v1"
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

func applyResources(out *runtime.ContainerSpec, pod *v1.Pod, c *v1.Container, memoryCapacity int64) {
	request, hasRequest := c.Resources.Requests[v1.ResourceCPU]
	limit, hasLimit := c.Resources.Limits[v1.ResourceCPU]
	switch {
	case hasRequest:
		out.CPUShares = shares(request.MilliValue())
	case hasLimit:
		// The API defaults a request to the limit; this is for a pod that came another way.
		out.CPUShares = shares(limit.MilliValue())
	default:
		out.CPUShares = minShares
	}
	if hasLimit && limit.MilliValue() > 0 {
		out.CPUPeriod = cpuPeriod
		out.CPUQuota = max(limit.MilliValue()*cpuPeriod/1000, minCPUQuota)
	}
	if m, ok := c.Resources.Limits[v1.ResourceMemory]; ok {
		out.MemoryLimit = m.Value()
	}
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
	request := c.Resources.Requests.Memory().Value()
	if IsSidecar(c) {
		// A sidecar must not die before what it serves.
		least := int64(-1)
		for i := range pod.Spec.Containers {
			if r := pod.Spec.Containers[i].Resources.Requests.Memory().Value(); least < 0 || r < least {
				least = r
			}
		}
		request = max(request, least)
	}
	return int(min(max(1000-1000*request/capacity, 1000+guaranteed), bestEffort-1))
}

// IsSidecar says whether an init container keeps running beside the pod's containers.
func IsSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}
