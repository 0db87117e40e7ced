package node

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/probe"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// syncProbes has each running container probed, and no other. Called with mu.
func (w *worker) syncProbes() {
	for _, c := range spec.Containers(w.pod) {
		actual := plan.Newest(w.sandbox, c.Name)
		have := w.probes[c.Name]
		running := actual != nil && actual.State == runtime.Running
		if have != nil && (!running || have.id != actual.ID) {
			have.set.Cancel()
			delete(w.probes, c.Name)
			have = nil
		}
		plainInit := fieldPath(w.pod, c.Name) != "spec.containers{"+c.Name+"}" && !spec.IsSidecar(c)
		starting := w.busy[c.Name] != nil && w.busy[c.Name].Kind == plan.Start
		if have != nil || !running || plainInit || starting || !w.halt.Since.IsZero() {
			continue
		}
		if !w.pod.Spec.HostNetwork && len(w.podIPs) == 0 {
			continue // attached in a moment
		}
		w.probes[c.Name] = &watched{id: actual.ID, set: w.newProbes(c, actual)}
	}
}

// newProbes starts probing. Called with mu.
func (w *worker) newProbes(c *v1.Container, actual *runtime.Container) *probe.Set {
	id, podIP := actual.ID, ""
	if len(w.podIPs) > 0 {
		podIP = w.podIPs[0]
	}
	old := oldStatus(w.pod, c.Name)
	exec := func(ctx context.Context, command []string) (int, []byte, error) { return w.exec(ctx, id, command) }
	return probe.New(w.ctx, probe.Config{
		Container: c,
		StartedAt: actual.Started,
		// A daemon that was restarted must not take traffic away from pods that never stopped.
		AlreadyReady: !w.mine[id] && old != nil && old.Ready && old.ContainerID == "podman://"+id,
		Once: func(ctx context.Context, p *v1.Probe) (bool, string) {
			return w.a.prober.Once(ctx, c, podIP, p, exec)
		},
		Changed: w.kick,
		Missed: func(kind probe.Kind, message string) {
			w.containerEvent(c.Name, v1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", kind, message)
		},
	})
}

// health is what plan hears of the probes. Called with mu.
func (w *worker) health() map[string]plan.Health {
	out := map[string]plan.Health{}
	for name, p := range w.probes {
		v := p.set.Verdict()
		h := plan.Health{Started: v.Started, Unhealthy: w.unhealthy[p.id]}
		if c := spec.Find(w.pod, name); c != nil && v.Failed != "" {
			failed := c.LivenessProbe
			if v.Failed == probe.Startup {
				failed = c.StartupProbe
			}
			h.Unhealthy = fmt.Sprintf("Container %s failed %s probe, will be restarted", name, lower(v.Failed))
			if failed != nil {
				h.Grace = failed.TerminationGracePeriodSeconds
			}
		}
		out[name] = h
	}
	return out
}

func lower(k probe.Kind) string {
	if k == probe.Startup {
		return "startup"
	}
	return "liveness"
}
