package status

import (
	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// Phase sums the containers up as kubelet's getPhase does: Pending until every
// container was started once, Running while one runs or will run again, then
// Succeeded or Failed.
func Phase(in Input, inits, mains []v1.ContainerStatus) v1.PodPhase {
	pod := in.Pod
	pending := false
	for i := range pod.Spec.InitContainers {
		c, s := &pod.Spec.InitContainers[i], &inits[i]
		if spec.IsSidecar(c) {
			if !in.Initialized && !*s.Started {
				pending = true
			}
			continue
		}
		end := lastEnd(s)
		switch {
		case s.State.Running != nil, end == nil:
			pending = !in.Initialized || s.State.Running != nil
		case end.ExitCode != 0:
			if in.Ended || !initRestarts(pod, c, end) {
				return v1.PodFailed
			}
			pending = true
		}
		if pending {
			break
		}
	}

	var running, waiting, ended, succeeded, final int
	for i := range mains {
		c, s := &pod.Spec.Containers[i], &mains[i]
		end := lastEnd(s)
		switch {
		case s.State.Running != nil:
			running++
		case end == nil:
			waiting++
		default:
			ended++
			if end.ExitCode == 0 {
				succeeded++
			}
			if in.Ended || !podutil.ContainerShouldRestart(*c, pod.Spec, end.ExitCode) {
				final++
			}
		}
	}
	switch {
	case in.Ended && ended > 0 && ended == succeeded && waiting == 0:
		return v1.PodSucceeded
	case in.Ended:
		return v1.PodFailed // it never came to run, or not all of it did
	case pending || waiting > 0:
		return v1.PodPending
	case running > 0 || final < ended:
		return v1.PodRunning
	case ended == succeeded:
		return v1.PodSucceeded
	}
	return v1.PodFailed
}

func initRestarts(pod *v1.Pod, c *v1.Container, end *v1.ContainerStateTerminated) bool {
	if c.RestartPolicy == nil {
		return pod.Spec.RestartPolicy != v1.RestartPolicyNever
	}
	return podutil.ContainerShouldRestart(*c, pod.Spec, end.ExitCode)
}

// lastEnd is how the container ended that does not run now; nil if it never ran.
func lastEnd(s *v1.ContainerStatus) *v1.ContainerStateTerminated {
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	if s.State.Waiting != nil {
		return s.LastTerminationState.Terminated
	}
	return nil
}
