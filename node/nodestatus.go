package node

import (
	"fmt"
	goruntime "runtime"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

const arch = goruntime.GOARCH

// status sets this peer's own conditions and facts; conditions of others stay.
func (r *registrar) status(node *v1.Node, now time.Time) {
	r.mu.Lock()
	engine, info, asked := r.engine, r.info, r.asked
	r.mu.Unlock()
	s := &node.Status
	s.Capacity, s.Allocatable = r.capacity(), r.allocatable()
	s.Addresses = r.cfg.NodeAddresses()
	s.Images = imagesOf(r.images())
	s.DaemonEndpoints.KubeletEndpoint.Port = r.cfg.Port
	host := hostFacts()
	s.NodeInfo = v1.NodeSystemInfo{
		MachineID: host.machineID, SystemUUID: host.machineID, BootID: host.bootID,
		KernelVersion: host.kernel, OSImage: host.osImage,
		KubeletVersion: r.cfg.Version, OperatingSystem: "linux", Architecture: arch,
		ContainerRuntimeVersion: s.NodeInfo.ContainerRuntimeVersion,
	}
	if info.Name != "" {
		s.NodeInfo.ContainerRuntimeVersion = info.Name + "://" + info.Version
	}
	// What the API or the scheduler would keep from a node that does not say that it can.
	s.DeclaredFeatures = []string{"InPlacePodLevelResourcesVerticalScaling", "RestartAllContainersOnContainerExits"}
	short := r.pressure()
	setNodeCondition(s, now, v1.NodeMemoryPressure, slices.Contains(short, v1.NodeMemoryPressure), "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
		"kubelet has insufficient memory available", "kubelet has sufficient memory available")
	setNodeCondition(s, now, v1.NodeDiskPressure, slices.Contains(short, v1.NodeDiskPressure), "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
		"kubelet has disk pressure", "kubelet has no disk pressure")
	setNodeCondition(s, now, v1.NodePIDPressure, slices.Contains(short, v1.NodePIDPressure), "KubeletHasInsufficientPID", "KubeletHasSufficientPID",
		"kubelet has insufficient PID available", "kubelet has sufficient PID available")
	switch {
	case r.isStopping():
		setNodeCondition(s, now, v1.NodeReady, false, "", "KubeletNotReady", "", "node is shutting down")
	case engine != nil:
		setNodeCondition(s, now, v1.NodeReady, false, "", "ContainerEngineUnavailable", "",
			fmt.Sprintf("Podman does not answer: %v. Containers that run go on", engine)) // the error has the cure
	case !asked:
		setNodeCondition(s, now, v1.NodeReady, false, "", "KubeletNotReady", "", "the container engine was not asked yet")
	default:
		setNodeCondition(s, now, v1.NodeReady, true, "KubeletReady", "", "rookery is posting ready status", "")
	}
}

// As many as kubelet tells, so that the object does not grow beyond measure.
const (
	maxNodeImages     = 50
	maxNamesPerImages = 5
)

// imagesOf is what the scheduler's preference for peers that have an image reads.
func imagesOf(list []runtime.Image) []v1.ContainerImage {
	var out []v1.ContainerImage
	for _, image := range list[:min(maxNodeImages, len(list))] {
		// Names first: an image that was both loaded and pulled has more digests than fit.
		names := append(slices.Clone(image.Names), image.Digests...)
		out = append(out, v1.ContainerImage{Names: names[:min(maxNamesPerImages, len(names))], SizeBytes: image.Size})
	}
	return out
}

func setNodeCondition(s *v1.NodeStatus, now time.Time, kind v1.NodeConditionType, is bool, yes, no, yesMessage, noMessage string) {
	c := v1.NodeCondition{Type: kind, Status: v1.ConditionFalse, Reason: no, Message: noMessage}
	if is {
		c.Status, c.Reason, c.Message = v1.ConditionTrue, yes, yesMessage
	}
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != kind {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return // no heartbeat
		}
		c.LastTransitionTime, c.LastHeartbeatTime = old.LastTransitionTime, metav1.NewTime(now)
		if old.Status != c.Status {
			c.LastTransitionTime = metav1.NewTime(now)
		}
		*old = c
		return
	}
	c.LastTransitionTime, c.LastHeartbeatTime = metav1.NewTime(now), metav1.NewTime(now)
	s.Conditions = append(s.Conditions, c)
}

func quantity(n int64, format resource.Format) resource.Quantity {
	return *resource.NewQuantity(n, format)
}
