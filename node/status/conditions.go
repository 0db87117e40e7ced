package status

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/node/spec"
)

func conditions(in Input, out *v1.PodStatus) {
	set(in, out, truth(v1.PodReadyToStartContainers, in.SandboxReady && !in.Ended, "", ""))
	set(in, out, initialized(in, out))
	ready := containersReady(in, out)
	set(in, out, ready)
	set(in, out, podReady(in, out, ready))
	if podutil.AllContainersCouldRestart(&in.Pod.Spec) {
		c := truth(v1.AllContainersRestarting, false, "", "")
		if in.Restarting {
			c = truth(v1.AllContainersRestarting, true, "RestartAllContainersStarted", "container exited with restart policy rule")
		}
		set(in, out, c)
	}
	if c := find(out.Conditions, v1.PodScheduled); c == nil {
		set(in, out, truth(v1.PodScheduled, true, "", ""))
	}
}

func initialized(in Input, out *v1.PodStatus) v1.PodCondition {
	if out.Phase == v1.PodSucceeded {
		return truth(v1.PodInitialized, true, "PodCompleted", "")
	}
	var open []string
	for i := range in.Pod.Spec.InitContainers {
		s := &out.InitContainerStatuses[i]
		if spec.IsSidecar(&in.Pod.Spec.InitContainers[i]) {
			if !in.Initialized && !*s.Started {
				open = append(open, s.Name)
			}
		} else if !s.Ready && !in.Initialized {
			open = append(open, s.Name)
		}
	}
	if len(open) > 0 {
		return truth(v1.PodInitialized, false, "ContainersNotInitialized", "containers with incomplete status: "+list(open))
	}
	return truth(v1.PodInitialized, true, "", "")
}

func containersReady(in Input, out *v1.PodStatus) v1.PodCondition {
	switch out.Phase {
	case v1.PodSucceeded:
		return truth(v1.ContainersReady, false, "PodCompleted", "")
	case v1.PodFailed:
		return truth(v1.ContainersReady, false, "PodFailed", "")
	}
	var open []string
	for i := range in.Pod.Spec.InitContainers {
		if s := out.InitContainerStatuses[i]; spec.IsSidecar(&in.Pod.Spec.InitContainers[i]) && !s.Ready {
			open = append(open, s.Name)
		}
	}
	for _, s := range out.ContainerStatuses {
		if !s.Ready {
			open = append(open, s.Name)
		}
	}
	if len(open) > 0 {
		return truth(v1.ContainersReady, false, "ContainersNotReady", "containers with unready status: "+list(open))
	}
	return truth(v1.ContainersReady, true, "", "")
}

func podReady(in Input, out *v1.PodStatus, containers v1.PodCondition) v1.PodCondition {
	if containers.Status != v1.ConditionTrue {
		containers.Type = v1.PodReady
		return containers
	}
	var open []string
	for _, gate := range in.Pod.Spec.ReadinessGates {
		c := find(out.Conditions, gate.ConditionType)
		if c == nil {
			open = append(open, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		} else if c.Status != v1.ConditionTrue {
			open = append(open, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, c.Status))
		}
	}
	if len(open) > 0 {
		return truth(v1.PodReady, false, "ReadinessGatesNotReady", strings.Join(open, ", "))
	}
	return truth(v1.PodReady, true, "", "")
}

func truth(kind v1.PodConditionType, is bool, reason, message string) v1.PodCondition {
	c := v1.PodCondition{Type: kind, Status: v1.ConditionFalse, Reason: reason, Message: message}
	if is {
		c.Status = v1.ConditionTrue
	}
	return c
}

func list(names []string) string { return "[" + strings.Join(names, " ") + "]" }

func find(conditions []v1.PodCondition, kind v1.PodConditionType) *v1.PodCondition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return &conditions[i]
		}
	}
	return nil
}

// set replaces a condition; the time of transition moves only with the status.
func set(in Input, out *v1.PodStatus, c v1.PodCondition) {
	c.ObservedGeneration = in.Pod.Generation
	c.LastTransitionTime = metav1.NewTime(in.Now)
	if old := find(out.Conditions, c.Type); old != nil {
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	out.Conditions = append(out.Conditions, c)
}
