package node

import (
	"fmt"
	goruntime "runtime"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const arch = goruntime.GOARCH

// status sets this peer's own conditions and facts; conditions of others stay.
func (r *registrar) status(node *v1.Node, now time.Time) {
	r.mu.Lock()
	engine, info, asked := r.engine, r.info, r.asked
	r.mu.Unlock()
	s := &node.Status
	s.Capacity, s.Allocatable = r.total, r.allocatable()
	s.Addresses = r.cfg.NodeAddresses
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
	free := host.memAvailable
	setNodeCondition(s, now, v1.NodeMemoryPressure, free >= 0 && free < minFreeMemory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
		"less than 100 MiB of memory is available", "kubelet has sufficient memory available")
	disk, err := diskFree(r.cfg.Dir)
	setNodeCondition(s, now, v1.NodeDiskPressure, err == nil && disk.percentFree() < minFreeDisk && disk.free < enoughDisk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
		fmt.Sprintf("less than %d %% of the disk under %s is free: remove images or files", minFreeDisk, r.cfg.Dir), "kubelet has no disk pressure")
	setNodeCondition(s, now, v1.NodePIDPressure, false, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "", "kubelet has sufficient PID available")
	switch {
	case engine != nil:
		setNodeCondition(s, now, v1.NodeReady, false, "", "ContainerEngineUnavailable", "",
			fmt.Sprintf("Podman does not answer: %v. Start it with `systemctl start podman.socket`; containers that run go on", engine))
	case !asked:
		setNodeCondition(s, now, v1.NodeReady, false, "", "KubeletNotReady", "", "the container engine was not asked yet")
	default:
		setNodeCondition(s, now, v1.NodeReady, true, "KubeletReady", "", "rookery is posting ready status", "")
	}
}

// Pressure as kubelet's default thresholds for eviction define it.
const (
	minFreeMemory = 100 << 20
	minFreeDisk   = 10 // percent
	// A large disk is not short of space for being 90 % full.
	enoughDisk = 10 << 30
)

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
