package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// minGrace is what even a container without grace gets between signal and kill, as in kubelet.
const minGrace = 2 * time.Second

// stop takes a pod down: containers at once, then the sidecars from the last to
// the first, then the sandbox.
func (s *step) stop() {
	if s.TornDown {
		s.Done = true
		return
	}
	for name, t := range s.Busy {
		if name != "" && t.Kind == Start {
			s.do(Action{Kind: CancelStart, Container: name})
		}
	}
	if !s.stopContainers(func(name string) string { return "Stopping container " + name }) {
		s.whole(Action{Kind: Teardown, Remove: s.Halt.Remove || s.Halt.Discard})
	}
}

// stopContainers stops the containers at once, then the sidecars from the last to the
// first, and says whether there is any left to wait for. why is for the events.
func (s *step) stopContainers(why func(name string) string) (waiting bool) {
	waiting = s.stopAll(s.Pod.Spec.Containers, why, func(*v1.Container) bool { return true })
	for i := range s.Pod.Spec.EphemeralContainers {
		if !s.Halt.Since.IsZero() && s.stopOne((*v1.Container)(&s.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), why) {
			waiting = true
		}
	}
	if waiting {
		return true
	}
	plain := func(c *v1.Container) bool { return !spec.IsSidecar(c) }
	if s.stopAll(s.Pod.Spec.InitContainers, why, plain) {
		return true
	}
	for i := len(s.Pod.Spec.InitContainers) - 1; i >= 0; i-- {
		c := &s.Pod.Spec.InitContainers[i]
		if spec.IsSidecar(c) && s.stopOne(c, why) {
			return true
		}
	}
	return false
}

// stopAll says whether any of the containers is still there to wait for.
func (s *step) stopAll(containers []v1.Container, why func(string) string, which func(*v1.Container) bool) bool {
	waiting := false
	for i := range containers {
		if which(&containers[i]) && s.stopOne(&containers[i], why) {
			waiting = true
		}
	}
	return waiting
}

func (s *step) stopOne(c *v1.Container, why func(string) string) (waiting bool) {
	grace := podGrace(s.Pod)
	if !s.Halt.Since.IsZero() {
		grace = max(s.Halt.Grace-s.Now.Sub(s.Halt.Since), minGrace)
	}
	if t, ok := s.Busy[c.Name]; ok {
		// A second, harder delete shortens what is under way.
		if t.Kind == Stop && s.Now.Add(grace).Before(t.Since.Add(t.Grace).Add(-time.Second)) {
			s.do(Action{Kind: CancelStop, Container: c.Name})
		}
		return true
	}
	actual := Newest(s.Sandbox, c.Name)
	if actual == nil || actual.State != runtime.Running && actual.State != runtime.Unknown {
		return false
	}
	s.do(Action{Kind: Stop, Container: c.Name, ID: actual.ID, Grace: grace, Why: why(c.Name)})
	return true
}

// exited translates what plan needs to know; node/status has the rest.
func exited(c *runtime.Container) *v1.ContainerStateTerminated {
	return &v1.ContainerStateTerminated{
		ExitCode:   int32(c.ExitCode),
		StartedAt:  metav1.NewTime(c.Started),
		FinishedAt: metav1.NewTime(c.Finished),
	}
}
