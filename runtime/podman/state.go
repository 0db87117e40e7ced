package podman

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/pods"
	"github.com/containers/podman/v4/pkg/domain/entities"

	"github.com/rundigitalplatform/rookery/runtime"
)

// endedAt is what only an inspection tells of a container that has ended. It
// holds as long as the end it was asked for is the last one.
type endedAt struct {
	exited int64 // ListContainer.ExitedAt it belongs to
	oom    bool
	err    string
}

func (r *Runtime) remember(s runtime.Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.homes[s.ID] = homeOf(s)
}

func (r *Runtime) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.homes, id)
}

// home returns what containers must know of a sandbox, from memory if it can.
func (r *Runtime) home(ctx context.Context, id string) (home, error) {
	r.mu.Lock()
	h, ok := r.homes[id]
	r.mu.Unlock()
	if ok {
		return h, nil
	}
	s, err := r.Inspect(ctx, id)
	return homeOf(s), err
}

// List implements runtime.Runtime by two API calls and one more for each
// container that ended since it was last looked at. Podman takes the lock of each
// container in a list, but of none that the labels leave out: while an OCI runtime
// hangs, its container's lock is held.
func (r *Runtime) List(ctx context.Context, labels map[string]string) ([]runtime.Sandbox, error) {
	out, err := r.list(ctx, labels)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return out, nil
}

// Inspect implements runtime.Runtime by an inspection of the pod, which costs
// Podman an eighth of a list that is filtered to it, and a list of its containers.
func (r *Runtime) Inspect(ctx context.Context, id string) (runtime.Sandbox, error) {
	pod, err := call(ctx, r.engine, func(ctx context.Context) (*entities.PodInspectReport, error) {
		return pods.Inspect(ctx, id, nil)
	})
	if err != nil {
		return runtime.Sandbox{}, fmt.Errorf("inspect sandbox %s: %w", id, err)
	}
	all, err := r.containersOf(ctx, "pod", pod.ID)
	if err != nil {
		return runtime.Sandbox{}, fmt.Errorf("inspect sandbox %s: %w", id, err)
	}
	out := []runtime.Sandbox{{ID: pod.ID, Name: pod.Name, Labels: pod.Labels, Created: pod.Created}}
	if _, err := r.fill(ctx, out, all); err != nil {
		return runtime.Sandbox{}, fmt.Errorf("inspect sandbox %s: %w", id, err)
	}
	return out[0], nil
}

// list asks for the owner's pods, then for their containers: a container whose
// pod is not known yet waits for the next look.
func (r *Runtime) list(ctx context.Context, labels map[string]string) ([]runtime.Sandbox, error) {
	mine := runtime.LabelOwner + "=" + r.owner
	with := []string{mine}
	for k, v := range labels {
		with = append(with, k+"="+v)
	}
	podList, err := call(ctx, r.engine, func(ctx context.Context) ([]*entities.ListPodsReport, error) {
		return pods.List(ctx, new(pods.ListOptions).WithFilters(map[string][]string{"label": with}))
	})
	if err != nil || len(podList) == 0 {
		return nil, err
	}
	filter, values := "label", []string{mine}
	if len(labels) > 0 { // which containers do not have
		filter, values = "pod", nil
		for _, p := range podList {
			values = append(values, p.Id)
		}
	}
	all, err := r.containersOf(ctx, filter, values...)
	if err != nil {
		return nil, err
	}
	out := make([]runtime.Sandbox, len(podList))
	for i, p := range podList {
		out[i] = runtime.Sandbox{ID: p.Id, Name: p.Name, Labels: p.Labels, Created: p.Created}
	}
	byID, err := r.fill(ctx, out, all)
	if err != nil {
		return nil, err
	}
	if len(labels) == 0 {
		r.forgetOthers(byID, all)
	}
	return out, nil
}

// fill puts the containers into their sandboxes, which it returns by id.
func (r *Runtime) fill(ctx context.Context, out []runtime.Sandbox, all []entities.ListContainer) (map[string]*runtime.Sandbox, error) {
	byID := make(map[string]*runtime.Sandbox, len(out))
	for i := range out {
		byID[out[i].ID] = &out[i]
	}
	for _, c := range all {
		if s := byID[c.Pod]; s != nil && c.IsInfra {
			if s.Running = c.State == define.ContainerStateRunning.String(); s.Running {
				s.PID = c.Pid
			}
		}
	}
	for i := range out {
		r.remember(out[i])
	}
	for _, c := range all {
		s := byID[c.Pod]
		if s == nil || c.IsInfra {
			continue
		}
		if c.Labels[labelContainer] == "" {
			continue // holds an image for the sandbox
		}
		state := containerState(c)
		if state.State == runtime.Exited {
			if err := r.addEnd(ctx, &state, c.ExitedAt); errors.Is(err, runtime.ErrNotFound) {
				continue // removed meanwhile
			} else if err != nil {
				return nil, err
			}
		}
		if state.State == runtime.Running {
			r.watch(s.PID, state.ID) // one that a former daemon started
		}
		s.Containers = append(s.Containers, state)
	}
	return byID, nil
}

func (r *Runtime) containersOf(ctx context.Context, filter string, values ...string) ([]entities.ListContainer, error) {
	return call(ctx, r.engine, func(ctx context.Context) ([]entities.ListContainer, error) {
		return containers.List(ctx, new(containers.ListOptions).WithAll(true).WithFilters(map[string][]string{filter: values}))
	})
}

// containerState is what a list tells of a container. Its times are to the second.
func containerState(c entities.ListContainer) runtime.Container {
	out := runtime.Container{
		ID:      c.ID,
		Name:    c.Labels[labelContainer],
		Labels:  c.Labels,
		Image:   c.Image,
		ImageID: imageID(c.ImageID),
		State:   state(c.State),
		Created: c.Created,
		Started: atSecond(c.StartedAt),
	}
	switch out.State {
	case runtime.Running:
		out.PID = c.Pid
	case runtime.Exited:
		out.Finished = atSecond(c.ExitedAt)
		out.ExitCode = int(c.ExitCode)
	}
	return out
}

// state translates Podman's states, whose names are those of Docker.
func state(s string) runtime.State {
	switch s {
	case define.ContainerStateConfigured.String(), define.ContainerStateCreated.String():
		return runtime.Created
	case define.ContainerStateRunning.String(), define.ContainerStatePaused.String(), define.ContainerStateStopping.String():
		return runtime.Running
	case define.ContainerStateStopped.String(), define.ContainerStateExited.String():
		return runtime.Exited
	}
	return runtime.Unknown
}

// atSecond turns a list's time into ours: Podman sends the zero time as it is.
func atSecond(seconds int64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

func imageID(id string) string {
	if id == "" || strings.HasPrefix(id, "sha256:") {
		return id
	}
	return "sha256:" + id
}

// addEnd completes the state of a container that has ended.
func (r *Runtime) addEnd(ctx context.Context, c *runtime.Container, exited int64) error {
	r.mu.Lock()
	end, ok := r.ended[c.ID]
	r.mu.Unlock()
	if !ok || end.exited != exited {
		data, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
			return containers.Inspect(ctx, c.ID, nil)
		})
		if err != nil {
			return err
		}
		end = endedAt{exited: exited}
		if data.State != nil {
			end.oom, end.err = data.State.OOMKilled || r.outOfMemory(c), data.State.Error
		}
		r.mu.Lock()
		r.ended[c.ID] = end
		r.mu.Unlock()
	}
	c.OOMKilled, c.Error = end.oom, end.err
	return nil
}

// forgetOthers drops what is remembered of sandboxes and containers that are gone.
// One that was created while the list was made is asked for again when needed.
func (r *Runtime) forgetOthers(sandboxes map[string]*runtime.Sandbox, there []entities.ListContainer) {
	ids := make(map[string]bool, len(there))
	for _, c := range there {
		ids[c.ID] = true
	}
	r.unwatch(func(id string) bool { return !ids[id] })
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.in, func(id string, _ string) bool { return !ids[id] })
	maps.DeleteFunc(r.files, func(id string, _ files) bool { return !ids[id] })
	maps.DeleteFunc(r.ended, func(id string, _ endedAt) bool { return !ids[id] })
	maps.DeleteFunc(r.homes, func(id string, _ home) bool { return sandboxes[id] == nil })
}
