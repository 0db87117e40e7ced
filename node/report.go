package node

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/status"
	"github.com/rundigitalplatform/rookery/runtime"
)

// report computes the pod's status. Called with mu.
func (w *worker) report(now time.Time, done bool) v1.PodStatus {
	hostIPs := w.a.cfg.hostIPs()
	// The addresses of a pod do not change, but its machine may have got its second one.
	if w.pod.Spec.HostNetwork && len(w.podIPs) == 1 && len(hostIPs) == 2 && w.podIPs[0] == hostIPs[0] {
		w.podIPs = hostIPs
	}
	in := status.Input{
		Pod: w.base(), Now: now,
		PodIPs: w.podIPs, HostIPs: hostIPs,
		SandboxReady: w.sandbox != nil && w.sandbox.Running && len(w.podIPs) > 0,
		Initialized:  w.initialized(),
		Terminating:  !w.halt.Since.IsZero(),
		Ended:        done && !w.halt.Resumes,
		Failed:       w.failed, Message: w.message, Disruption: w.disruption,
		RecursiveReadOnly: w.a.recursiveReadOnly,
		Sized:             w.bounds != nil && *w.bounds == spec.PodResources(w.pod),
		Restarting:        w.halt.Since.IsZero() && plan.Trigger(w.pod, w.sandbox, w.memory) != nil,
		Containers:        map[string]status.Container{},
	}
	for _, c := range spec.Containers(w.pod) {
		in.Containers[c.Name] = w.reportContainer(c, now)
	}
	out := status.Build(in)
	w.reportResize(&out, now)
	w.reported = &out
	return out
}

func (w *worker) reportContainer(c *v1.Container, now time.Time) status.Container {
	m := w.memory[c.Name]
	k := status.Container{
		Actual:   plan.Newest(w.sandbox, c.Name),
		Restarts: m.Attempt,
		Last:     m.Last,
		Old:      oldStatus(w.pod, c.Name),
		Image:    w.images[c.Name],
		Ended:    m.Ended,
		Waiting:  m.Waiting,
		Sized:    m.Resources != nil && *m.Resources == spec.Resources(w.pod, c),
	}
	if k.Ended == nil && k.Actual != nil && k.Actual.State == runtime.Exited && !m.Fresh {
		k.Ended = w.terminated(c.Name, k.Actual)
	}
	if m.Fresh {
		k.Actual = nil
	}
	if k.Actual != nil {
		k.User = w.users[k.Actual.ID]
	}
	task := w.busy[c.Name]
	if p := w.probes[c.Name]; p != nil && k.Actual != nil && p.id == k.Actual.ID {
		v := p.set.Verdict()
		k.Started, k.Ready = v.Started, v.Ready
	} else if c.LivenessProbe == nil && c.ReadinessProbe == nil && c.StartupProbe == nil {
		k.Started, k.Ready = true, true
	} else if k.Old != nil && k.Actual != nil && !w.mine[k.Actual.ID] && k.Old.ContainerID == "podman://"+k.Actual.ID {
		k.Started, k.Ready = k.Old.Started != nil && *k.Old.Started, k.Old.Ready // adopted, not probed yet
	}
	if task != nil && task.Kind == plan.Start {
		k.Started = false // postStart still runs
	}
	restarts := k.Ended != nil && w.halt.Since.IsZero() && plan.Restarts(w.pod, c, k.Ended)
	if at := m.Due(k.Ended, now); restarts && task == nil && now.Before(at) && m.Backoff > 0 {
		k.Waiting = w.crashLoop(c, m)
	}
	if !w.halt.Since.IsZero() && k.Ended != nil {
		k.Waiting = nil
	}
	return k
}

func (w *worker) crashLoop(c *v1.Container, m *plan.Memory) *v1.ContainerStateWaiting {
	pod := w.pod
	w.tellOnce(fmt.Sprintf("backoff %s %d", c.Name, m.Attempt), v1.EventTypeWarning, "BackOff",
		"Back-off restarting failed container %s in pod %s_%s(%s)", c.Name, pod.Name, pod.Namespace, pod.UID)
	return &v1.ContainerStateWaiting{
		Reason:  "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", m.Backoff, c.Name, pod.Name, pod.Namespace, pod.UID),
	}
}

// initialized: a container was started, so the init containers are over.
func (w *worker) initialized() bool {
	for i := range w.pod.Spec.Containers {
		if m := w.memory[w.pod.Spec.Containers[i].Name]; m.Attempt >= 0 && !m.Fresh {
			return true
		}
	}
	for i := range w.pod.Spec.InitContainers {
		c := &w.pod.Spec.InitContainers[i]
		if spec.IsSidecar(c) {
			p := w.probes[c.Name]
			if p == nil || !p.set.Verdict().Started {
				return false
			}
		} else if end := plan.Ended(w.sandbox, c.Name, w.memory[c.Name]); end == nil || end.ExitCode != 0 {
			return false
		}
	}
	return true
}

// base is the pod with the conditions and times that were reported last, which the
// API may not have taken in yet; what others own is the API's.
func (w *worker) base() *v1.Pod {
	pod := w.pod
	if w.reported == nil {
		return pod
	}
	pod = pod.DeepCopy()
	if pod.Status.StartTime == nil {
		pod.Status.StartTime = w.reported.StartTime
	}
	for _, c := range w.reported.Conditions {
		switch c.Type {
		case v1.PodReady, v1.ContainersReady, v1.PodInitialized, v1.PodReadyToStartContainers:
			setCondition(&pod.Status, c)
		}
	}
	return pod
}

func setCondition(s *v1.PodStatus, c v1.PodCondition) {
	for i := range s.Conditions {
		if s.Conditions[i].Type == c.Type {
			s.Conditions[i] = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}
