package plan

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// run brings a wanted pod up and keeps it up.
func (s *step) run() {
	if s.reset() {
		return
	}
	if s.finished() {
		s.Finished = true
		return
	}
	switch {
	case s.Sandbox != nil && !s.Sandbox.Running:
		s.whole(Action{Kind: RemoveSandbox})
		return
	case !s.VolumesReady:
		s.whole(Action{Kind: SetupVolumes})
	case s.Sandbox == nil:
		s.whole(Action{Kind: RunSandbox})
	case !s.Attached:
		s.whole(Action{Kind: Attach})
	}
	if s.Sandbox == nil {
		return
	}
	// First, so that one can be had in a pod whose initialization is stuck.
	for i := range s.Pod.Spec.EphemeralContainers {
		s.keep((*v1.Container)(&s.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	if !s.init() {
		return
	}
	for i := range s.Pod.Spec.Containers {
		s.keep(&s.Pod.Spec.Containers[i])
	}
}

// canStart: what runs is looked after even where nothing new can be started.
func (s *step) canStart() bool {
	return s.VolumesReady && s.Attached && s.Sandbox != nil && s.Sandbox.Running
}

// init walks the init containers in order and says whether the containers may start.
func (s *step) init() bool {
	initialized := s.initialized()
	for i := range s.Pod.Spec.InitContainers {
		c := &s.Pod.Spec.InitContainers[i]
		if spec.IsSidecar(c) {
			s.keep(c)
			if !initialized && !(s.running(c) && s.Health[c.Name].Started && !s.busy(c.Name)) {
				return false
			}
			continue
		}
		if initialized {
			continue // done before; it may even have been cleaned away
		}
		if end := s.ended(c.Name); end == nil || end.ExitCode != 0 {
			s.keep(c)
			return false
		}
	}
	return true
}

// initialized: once a container was started in this sandbox, init containers are over.
func (s *step) initialized() bool {
	for i := range s.Pod.Spec.Containers {
		name := s.Pod.Spec.Containers[i].Name
		if Newest(s.Sandbox, name) != nil || s.Busy[name].Kind == Start {
			return true
		}
	}
	return false
}

// keep starts, restarts or replaces one container as needed.
func (s *step) keep(c *v1.Container) {
	if s.busy(c.Name) {
		return
	}
	m := s.Memory[c.Name]
	actual := Newest(s.Sandbox, c.Name)
	if actual != nil && actual.State == runtime.Unknown {
		return // the engine will tell
	}
	if actual != nil && actual.State == runtime.Running {
		s.inspect(c, actual)
		return
	}
	end := s.ended(c.Name)
	if end != nil && !s.restarts(c, end) {
		return
	}
	if at := m.Due(end, s.Now); s.Now.Before(at) {
		s.wake(at)
		return
	}
	if s.Now.Before(m.Retry) {
		s.wake(m.Retry)
		return
	}
	if s.canStart() {
		attempt := m.Attempt + 1
		if end == nil && actual != nil {
			attempt = m.Attempt // created and never started: the same try again
		}
		s.do(Action{Kind: Start, Container: c.Name, Attempt: attempt})
	}
}

// inspect stops a running container that has to be replaced.
func (s *step) inspect(c *v1.Container, actual *runtime.Container) {
	stop := Action{Kind: Stop, Container: c.Name, ID: actual.ID, Grace: podGrace(s.Pod)}
	if h := s.Health[c.Name]; h.Unhealthy != "" {
		stop.Why = h.Unhealthy
		if h.Grace != nil {
			stop.Grace = time.Duration(*h.Grace) * time.Second
		}
		s.do(stop)
	} else if actual.Labels[spec.LabelHash] != spec.Hash(c) {
		stop.Why = fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)
		s.do(stop)
	} else if have, want := s.Memory[c.Name].Resources, spec.Resources(s.Pod, c); have != nil && *have != want && !s.NoRoom {
		s.resize(c, stop, *have, want)
	}
}

// resize gives a running container other resources, in place unless its resize
// policy says otherwise.
func (s *step) resize(c *v1.Container, stop Action, have, want runtime.Resources) {
	if m := s.Memory[c.Name]; m.Wanted != nil && *m.Wanted == want && s.Now.Before(m.Retry) {
		s.wake(m.Retry)
		return
	}
	for _, p := range c.ResizePolicy {
		changed := p.ResourceName == v1.ResourceMemory && have.MemoryLimit != want.MemoryLimit ||
			p.ResourceName == v1.ResourceCPU && (have.CPUShares != want.CPUShares || have.CPUQuota != want.CPUQuota)
		if changed && p.RestartPolicy == v1.RestartContainer {
			stop.Why = fmt.Sprintf("Container %s resize requires restart", c.Name)
			s.do(stop)
			return
		}
	}
	s.do(Action{Kind: Resize, Container: c.Name, ID: stop.ID})
}

// ended is how the container's newest attempt ended, or nil if it has not.
func (s *step) ended(name string) *v1.ContainerStateTerminated {
	return Ended(s.Sandbox, name, s.Memory[name])
}

// Ended is how the newest attempt of a container ended, or nil if it has not, or
// none was made in this sandbox. Only code and times are set if the engine says so.
func Ended(sandbox *runtime.Sandbox, name string, m *Memory) *v1.ContainerStateTerminated {
	if m == nil || m.Fresh {
		return nil
	}
	if m.Ended != nil {
		return m.Ended
	}
	if c := Newest(sandbox, name); c != nil && c.State == runtime.Exited {
		return m.Outcome(exited(c))
	}
	return nil
}

func (s *step) running(c *v1.Container) bool {
	actual := Newest(s.Sandbox, c.Name)
	return actual != nil && actual.State == runtime.Running
}

func (s *step) restarts(c *v1.Container, end *v1.ContainerStateTerminated) bool {
	return Restarts(s.Pod, c, end)
}

// Restarts says whether a container that ended so runs again.
func Restarts(pod *v1.Pod, c *v1.Container, end *v1.ContainerStateTerminated) bool {
	if spec.Ephemeral(pod, c.Name) != nil {
		return false
	}
	if isInit(pod, c) && !spec.IsSidecar(c) && c.RestartPolicy == nil {
		// Always means for an init container: until it succeeds.
		return end.ExitCode != 0 && pod.Spec.RestartPolicy != v1.RestartPolicyNever
	}
	return podutil.ContainerShouldRestart(*c, pod.Spec, end.ExitCode)
}

// Resumes says whether a pod runs again that is ended with all force, as by a loss of power.
func Resumes(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Containers, func(c v1.Container) bool {
		return podutil.ContainerShouldRestart(c, pod.Spec, killed)
	})
}

func isInit(pod *v1.Pod, c *v1.Container) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == c.Name {
			return true
		}
	}
	return false
}

// finished: every container has ended for good, or initialization has failed for good.
func (s *step) finished() bool {
	for i := range s.Pod.Spec.InitContainers {
		c := &s.Pod.Spec.InitContainers[i]
		if spec.IsSidecar(c) {
			continue
		}
		if end := s.ended(c.Name); end != nil && end.ExitCode != 0 && !s.restarts(c, end) && !s.busy(c.Name) {
			return true
		}
	}
	for i := range s.Pod.Spec.Containers {
		c := &s.Pod.Spec.Containers[i]
		end := s.ended(c.Name)
		if end == nil || s.restarts(c, end) || s.busy(c.Name) {
			return false
		}
	}
	return len(s.Pod.Spec.Containers) > 0
}

func podGrace(pod *v1.Pod) time.Duration {
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return v1.DefaultTerminationGracePeriodSeconds * time.Second
}
