// Package status computes a pod's status as kubelet reports it: phase, conditions
// and the state of every container. It is a pure function of what was observed;
// writing it to the API is left to package node, which calls it.
package status

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Container is what is known of one container.
type Container struct {
	Actual   *runtime.Container           // the newest attempt; nil: none
	Restarts int                          // attempts before the newest; negative counts as none
	Ended    *v1.ContainerStateTerminated // how the newest attempt ended
	Last     *v1.ContainerStateTerminated // how the one before it ended
	Waiting  *v1.ContainerStateWaiting    // why it does not run
	Started  bool                         // startup probe and postStart passed
	Ready    bool                         // readiness probe passed, or there is none
	Old      *v1.ContainerStatus          // as reported before; nil: never
	Image    *runtime.Image               // nil: not known
	User     *v1.ContainerUser            // of the newest attempt; nil: not known
	Sized    bool                         // it runs with the resources that the pod names now
}

// Input is what a pod's status is made from.
type Input struct {
	Pod          *v1.Pod // with the status that the API has
	Now          time.Time
	PodIPs       []string
	HostIPs      []string
	SandboxReady bool // it runs and has its addresses
	Initialized  bool // a container was started
	Terminating  bool // the pod has to end; it is not ready from then on
	Ended        bool // it has to end and nothing of it runs any more
	// Failed, if not empty, is why the pod as a whole was given up, e.g. DeadlineExceeded.
	Failed, Message string
	Disruption      *v1.PodCondition // that says so in a condition; nil: none does
	Sized           bool             // the sandbox runs with the resources that the pod names now
	Containers      map[string]Container
	Restarting      bool // a container ended so that all of the pod starts over
	// RecursiveReadOnly says whether this machine can make mounts read-only with all below.
	RecursiveReadOnly bool
}

// Build computes the status. Conditions that others own (PodScheduled, readiness
// gates, DisruptionTarget) are kept.
func Build(in Input) v1.PodStatus {
	pod := in.Pod
	out := *pod.Status.DeepCopy()
	out.ObservedGeneration = pod.Generation
	out.InitContainerStatuses = containers(in, pod.Spec.InitContainers, true)
	out.ContainerStatuses = containers(in, pod.Spec.Containers, false)
	out.EphemeralContainerStatuses = ephemeral(in)
	out.QOSClass = v1qos.ComputePodQOS(pod)
	if out.StartTime == nil {
		now := metav1.NewTime(in.Now.Truncate(time.Second))
		out.StartTime = &now
	}
	if len(in.HostIPs) > 0 {
		out.HostIP, out.HostIPs = in.HostIPs[0], nil
		for _, ip := range in.HostIPs {
			out.HostIPs = append(out.HostIPs, v1.HostIP{IP: ip})
		}
	}
	if len(in.PodIPs) > 0 {
		out.PodIP, out.PodIPs = in.PodIPs[0], nil
		for _, ip := range in.PodIPs {
			out.PodIPs = append(out.PodIPs, v1.PodIP{IP: ip})
		}
	}
	boundMessages(&out)
	out.Phase = Phase(in, out.InitContainerStatuses, out.ContainerStatuses)
	if pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded {
		out.Phase = pod.Status.Phase // a pod never comes back from its end
	}
	if in.Failed != "" {
		out.Reason, out.Message = in.Failed, in.Message
		if in.Ended {
			out.Phase = v1.PodFailed
		}
	}
	if whole := pod.Spec.Resources; whole != nil && in.Sized {
		out.Resources = whole.DeepCopy()
		out.AllocatedResources = resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	}
	conditions(in, &out)
	if in.Disruption != nil {
		set(in, &out, *in.Disruption)
	}
	return out
}

func containers(in Input, specs []v1.Container, init bool) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for i := range specs {
		out = append(out, container(in, &specs[i], in.Containers[specs[i].Name], init))
	}
	return out
}

// ephemeral: such containers are neither started nor ready for anybody.
func ephemeral(in Input) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for i := range in.Pod.Spec.EphemeralContainers {
		c := (*v1.Container)(&in.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		s := container(in, c, in.Containers[c.Name], false)
		s.Ready, s.Started = false, nil
		out = append(out, s)
	}
	return out
}

func container(in Input, c *v1.Container, k Container, init bool) v1.ContainerStatus {
	out := v1.ContainerStatus{
		Name:         c.Name,
		Image:        c.Image,
		RestartCount: int32(max(k.Restarts, 0)),
		VolumeMounts: mounts(c, in.RecursiveReadOnly),
	}
	if k.Last != nil {
		out.LastTerminationState.Terminated = k.Last
	}
	if k.Actual != nil {
		out.ContainerID = "podman://" + k.Actual.ID
		out.ImageID, out.User = k.Actual.ImageID, k.User
	}
	if k.Image != nil {
		out.ImageID = imageID(c.Image, *k.Image)
	} else if k.Actual != nil && k.Old != nil && k.Old.ImageID != "" && k.Old.ContainerID == out.ContainerID {
		out.ImageID = k.Old.ImageID
	}
	running := k.Actual != nil && k.Actual.State == runtime.Running && k.Ended == nil
	switch {
	case running:
		out.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(k.Actual.Started)}
	case k.Ended != nil && k.Waiting == nil:
		out.State.Terminated = k.Ended
		if out.ContainerID == "" {
			out.ContainerID = k.Ended.ContainerID
		}
	case k.Ended != nil && !in.Ended:
		// It will run again, but not yet.
		out.State.Waiting = k.Waiting
		out.LastTerminationState.Terminated = k.Ended
	case k.Ended != nil:
		out.State.Terminated = k.Ended
	case k.Waiting != nil:
		out.State.Waiting = k.Waiting
	default:
		reason := "ContainerCreating"
		if len(in.Pod.Spec.InitContainers) > 0 {
			reason = "PodInitializing"
		}
		out.State.Waiting = &v1.ContainerStateWaiting{Reason: reason}
	}
	if running && k.Sized {
		out.Resources, out.AllocatedResources = c.Resources.DeepCopy(), c.Resources.Requests.DeepCopy()
	} else if running && k.Old != nil {
		out.Resources, out.AllocatedResources = k.Old.Resources, k.Old.AllocatedResources
	}
	started := running && k.Started
	if !init || spec.IsSidecar(c) {
		out.Ready = started && k.Ready && !in.Terminating
	} else {
		out.Ready = out.State.Terminated != nil && out.State.Terminated.ExitCode == 0
		started = false
	}
	out.Started = &started
	return out
}

// mounts tells which of the read-only mounts are so with all that is mounted below.
func mounts(c *v1.Container, possible bool) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if w := m.RecursiveReadOnly; w != nil && *w != v1.RecursiveReadOnlyDisabled && possible {
				mode = v1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// imageID names the image so that another peer could fetch the same one: from where
// ref is, if it is known there.
func imageID(ref string, img runtime.Image) string {
	for _, name := range runtime.Names(ref) {
		for _, digest := range img.Digests {
			repository, _, _ := strings.Cut(digest, "@")
			if name == digest || strings.HasPrefix(name, repository+":") || strings.HasPrefix(name, repository+"@") {
				return digest
			}
		}
	}
	if len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return img.ID
}

// Terminated translates a container that has exited; message is its last word.
func Terminated(c *runtime.Container, message string) *v1.ContainerStateTerminated {
	out := &v1.ContainerStateTerminated{
		ExitCode:    int32(c.ExitCode),
		Reason:      "Completed",
		Message:     message,
		StartedAt:   metav1.NewTime(c.Started),
		FinishedAt:  metav1.NewTime(c.Finished),
		ContainerID: "podman://" + c.ID,
	}
	switch {
	case c.OOMKilled:
		out.Reason = "OOMKilled"
	case c.Started.IsZero():
		out.Reason = "StartError"
	case c.ExitCode != 0:
		out.Reason = "Error"
	}
	if out.Message == "" {
		out.Message = strings.TrimSpace(c.Error)
	}
	return out
}
