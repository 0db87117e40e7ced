package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

type sandbox struct {
	owner      string
	state      runtime.Sandbox // without Containers
	containers []*container
	resources  runtime.Resources
}

// RunSandbox implements runtime.Runtime.
func (r *Runtime) RunSandbox(ctx context.Context, spec runtime.SandboxSpec) (runtime.Sandbox, error) {
	if err := r.m.delay(ctx); err != nil {
		return runtime.Sandbox{}, fmt.Errorf("run sandbox %s: %w", spec.Name, err)
	}
	if err := r.m.enter(ctx); err != nil {
		return runtime.Sandbox{}, fmt.Errorf("run sandbox %s: %w", spec.Name, err)
	}
	defer r.m.mu.Unlock()
	if spec.Name == "" {
		return runtime.Sandbox{}, fmt.Errorf("run sandbox: the name is empty")
	}
	if spec.Handler != "" && !slices.Contains(r.m.cfg.Handlers, spec.Handler) {
		return runtime.Sandbox{}, fmt.Errorf("run sandbox %s: %w: %s", spec.Name, runtime.ErrNoHandler, spec.Handler)
	}
	for _, s := range r.m.sandboxes {
		if s.state.Name == spec.Name {
			return runtime.Sandbox{}, fmt.Errorf("run sandbox %s: %w", spec.Name, runtime.ErrExists)
		}
	}
	r.m.lastPID++
	s := &sandbox{owner: r.owner, resources: spec.Resources, state: runtime.Sandbox{
		ID:      r.m.newID(),
		Name:    spec.Name,
		Labels:  r.labels(spec.Name, spec.Labels),
		Created: time.Now(),
		Running: true,
		PID:     r.m.lastPID,
	}}
	r.m.sandboxes[s.state.ID] = s
	r.m.publish(s, runtime.SandboxStarted, "")
	return s.snapshot(), nil
}

// labels adds the ones that make sandboxes and containers ours.
func (r *Runtime) labels(sandbox string, more map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, more)
	out[runtime.LabelOwner], out[runtime.LabelSandbox] = r.owner, sandbox
	return out
}

// UpdateSandbox implements runtime.Runtime. Nothing here uses resources.
func (r *Runtime) UpdateSandbox(ctx context.Context, s runtime.Sandbox, res runtime.Resources) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("update sandbox %s: %w", s.Name, err)
	}
	defer r.m.mu.Unlock()
	mine := r.m.sandboxes[s.ID]
	if mine == nil || !mine.state.Running {
		return fmt.Errorf("update sandbox %s: it does not run: %w", s.Name, runtime.ErrNotFound)
	}
	mine.resources = res
	return nil
}

// SandboxResources are those that a sandbox has now; false: there is none of that id.
func (m *Machine) SandboxResources(id string) (runtime.Resources, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sandboxes[id]
	if s == nil {
		return runtime.Resources{}, false
	}
	return s.resources, true
}

// Spec is what a container was made from.
func (m *Machine) Spec(containerID string) (runtime.ContainerSpec, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[containerID]
	if c == nil {
		return runtime.ContainerSpec{}, fmt.Errorf("container %s: %w", containerID, runtime.ErrNotFound)
	}
	return c.spec, nil
}

// StopSandbox implements runtime.Runtime.
func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	if err := r.m.enter(ctx, id); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	if s := r.m.sandboxes[id]; s != nil {
		r.m.kill(s)
	}
	return nil
}

// RemoveSandbox implements runtime.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	if err := r.m.enter(ctx, id); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	s := r.m.sandboxes[id]
	if s == nil {
		return nil
	}
	r.m.kill(s)
	for _, c := range s.containers {
		delete(r.m.containers, c.state.ID)
		r.m.publish(s, runtime.ContainerRemoved, c.state.ID)
	}
	delete(r.m.sandboxes, id)
	r.m.publish(s, runtime.SandboxEnded, "")
	return nil
}

// kill ends all of a sandbox, the infra container last. Called with the lock.
func (m *Machine) kill(s *sandbox) {
	for _, c := range s.containers {
		m.end(c, c.run, 137, false)
	}
	m.killInfra(s)
}

// killInfra is called with the lock.
func (m *Machine) killInfra(s *sandbox) {
	if s.state.Running {
		s.state.Running, s.state.PID = false, 0
		m.publish(s, runtime.SandboxEnded, "")
	}
}

// List implements runtime.Runtime. A sandbox that is stalled holds it up, as in Podman.
func (r *Runtime) List(ctx context.Context, labels map[string]string) ([]runtime.Sandbox, error) {
	r.m.mu.Lock()
	var ids []string
	for id, s := range r.m.sandboxes {
		if s.owner == r.owner && s.has(labels) {
			ids = append(ids, id)
		}
	}
	r.m.mu.Unlock()
	if err := r.m.enter(ctx, ids...); err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	defer r.m.mu.Unlock()
	var out []runtime.Sandbox
	for _, s := range r.m.sandboxes {
		if s.owner == r.owner && s.has(labels) {
			out = append(out, s.snapshot())
		}
	}
	return out, nil
}

// has is called with the lock.
func (s *sandbox) has(labels map[string]string) bool {
	for k, v := range labels {
		if s.state.Labels[k] != v {
			return false
		}
	}
	return true
}

// Inspect implements runtime.Runtime.
func (r *Runtime) Inspect(ctx context.Context, id string) (runtime.Sandbox, error) {
	if err := r.m.enter(ctx, id); err != nil {
		return runtime.Sandbox{}, fmt.Errorf("inspect sandbox %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	s := r.m.sandboxes[id]
	if s == nil {
		return runtime.Sandbox{}, fmt.Errorf("inspect sandbox %s: %w", id, runtime.ErrNotFound)
	}
	return s.snapshot(), nil
}

// snapshot is a copy that nobody changes any more. Called with the lock.
func (s *sandbox) snapshot() runtime.Sandbox {
	out := s.state
	out.Labels = maps.Clone(s.state.Labels)
	for _, c := range s.containers {
		state := c.state
		state.Labels = maps.Clone(c.state.Labels)
		out.Containers = append(out.Containers, state)
	}
	return out
}
