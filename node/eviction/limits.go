package eviction

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Limited says whether a pod has a limit that only measuring its files can hold it to:
// ephemeral-storage, or the size of an emptyDir on disk.
func Limited(pod *v1.Pod) bool {
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if _, ok := limits[v1.ResourceEphemeralStorage]; ok {
		return true
	}
	for i := range pod.Spec.Volumes {
		if sizeLimit(&pod.Spec.Volumes[i]) != nil {
			return true
		}
	}
	return false
}

// sizeLimit of an emptyDir on disk; nil: it has none. In memory the kernel enforces it.
func sizeLimit(v *v1.Volume) *resource.Quantity {
	e := v.EmptyDir
	if e == nil || e.Medium != v1.StorageMediumDefault || e.SizeLimit == nil || e.SizeLimit.Sign() <= 0 {
		return nil
	}
	return e.SizeLimit
}

// Exceeded is why a pod has to go for its own limits, in kubelet's words; empty: it has
// not. volumes has the bytes of each of its emptyDirs on disk by name, disk those of the
// layer and log of each running container; other is what else of it is on disk.
func Exceeded(pod *v1.Pod, volumes, disk map[string]int64, other int64) string {
	total := other
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		total += volumes[v.Name]
		if limit := sizeLimit(v); limit != nil && volumes[v.Name] > limit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	for _, bytes := range disk {
		total += bytes
	}
	if limit, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && total > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			c := &list[i]
			if limit := c.Resources.Limits.StorageEphemeral(); !limit.IsZero() && disk[c.Name] > limit.Value() {
				return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
			}
		}
	}
	return ""
}
