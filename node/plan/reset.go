package plan

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Trigger is the container that has ended so that by its rules the whole pod starts
// over, or nil. Init containers that succeeded in between do not hide it.
func Trigger(pod *v1.Pod, sandbox *runtime.Sandbox, memory map[string]*Memory) *v1.Container {
	if !podutil.AllContainersCouldRestart(&pod.Spec) {
		return nil
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			end := Ended(sandbox, list[i].Name, memory[list[i].Name])
			if end == nil {
				continue
			}
			rule, ok := podutil.FindMatchingContainerRestartRule(list[i], end.ExitCode)
			if ok && rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
				return &list[i]
			}
		}
	}
	return nil
}

// reset starts the whole pod over if a container asks for that by how it ended: all are
// stopped as when the pod goes, and the sandbox is made anew, with the pod's address and
// volumes. The first time that is at once, then with the backoff of that container.
func (s *step) reset() bool {
	c := Trigger(s.Pod, s.Sandbox, s.Memory)
	if c == nil || s.busy(c.Name) {
		return false
	}
	if at := s.Memory[c.Name].Due(s.ended(c.Name), s.Now); s.Now.Before(at) {
		s.wake(at)
		return false // until then the others are looked after as ever
	}
	why := fmt.Sprintf("all containers of the pod will be restarted, as container %s has ended", c.Name)
	if s.stopContainers(func(name string) string { return fmt.Sprintf("Stopping container %s: %s", name, why) }) {
		return true
	}
	if s.Sandbox != nil {
		s.whole(Action{Kind: RemoveSandbox, Container: c.Name})
	}
	return s.Sandbox != nil
}

// Reset forgets how containers ended, so that all of the pod starts anew; trigger is the
// one because of which. SandboxReplaced has to be called before.
func Reset(pod *v1.Pod, memory map[string]*Memory, trigger string) {
	for _, c := range spec.Containers(pod) {
		m := memory[c.Name]
		if m == nil || spec.Ephemeral(pod, c.Name) != nil {
			continue
		}
		end := m.Ended
		if m.Fresh && m.Last != nil { // an init container, of which SandboxReplaced has taken it
			end = m.Last
		}
		if end == nil {
			continue
		}
		if c.Name == trigger {
			m.raise(end.FinishedAt.Time)
		}
		m.Last, m.Ended, m.Fresh = end, nil, true
	}
}
