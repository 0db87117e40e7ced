package podman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/bindings/pods"
	"github.com/containers/podman/v4/pkg/domain/entities"
	"golang.org/x/sync/errgroup"

	"github.com/rundigitalplatform/rookery/runtime"
)

// cleanUpTime bounds what is undone after a failure, when the caller's time may be over.
const cleanUpTime = 10 * time.Second

// Prepare lets Podman build the image of infra containers, which it does by the
// first pod, and badly when several come at once. RunSandbox does it by
// itself; called at startup it makes the first sandbox as fast as the others.
func (r *Runtime) Prepare(ctx context.Context) error {
	select {
	case r.preparing <- struct{}{}:
		defer func() { <-r.preparing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.prepared {
		return nil
	}
	if err := r.prepare(ctx); err != nil {
		return fmt.Errorf("prepare podman: %w", err)
	}
	r.prepared = true
	return nil
}

func (r *Runtime) prepare(ctx context.Context) error {
	name := "rookery-prepare-" + r.owner
	if err := r.removePod(ctx, name); err != nil { // left by a daemon that died here
		return err
	}
	there, err := call(ctx, r.engine, func(ctx context.Context) (bool, error) {
		list, err := images.List(ctx, new(images.ListOptions).WithFilters(map[string][]string{"reference": {"localhost/podman-pause"}}))
		return len(list) > 0, err
	})
	if err != nil || there {
		return err
	}
	id, err := r.createPod(ctx, runtime.SandboxSpec{Name: name})
	if err != nil {
		return err
	}
	return r.removePod(ctx, id)
}

// RunSandbox implements runtime.Runtime by three API calls: create the pod,
// start its infra container, inspect that for the PID.
func (r *Runtime) RunSandbox(ctx context.Context, spec runtime.SandboxSpec) (runtime.Sandbox, error) {
	s, err := r.runSandbox(ctx, spec)
	if err != nil {
		return runtime.Sandbox{}, fmt.Errorf("run sandbox %s: %w", spec.Name, err)
	}
	return s, nil
}

func (r *Runtime) runSandbox(ctx context.Context, spec runtime.SandboxSpec) (runtime.Sandbox, error) {
	if spec.Name == "" {
		return runtime.Sandbox{}, errors.New("the name is empty")
	}
	if err := r.Prepare(ctx); err != nil {
		return runtime.Sandbox{}, err
	}
	release, err := r.slot(ctx)
	if err != nil {
		return runtime.Sandbox{}, err
	}
	defer release()
	began := time.Now()
	id, err := r.createPod(ctx, spec)
	if err != nil {
		if ctx.Err() != nil { // it may have been created all the same
			go r.undoUnknown(ctx, spec.Name, began)
		}
		return runtime.Sandbox{}, err
	}
	infra, err := r.startInfra(ctx, spec.Name)
	if err == nil {
		err = r.checkHandler(ctx, home{id: id, name: spec.Name, handler: spec.Handler}, infra)
	}
	if err != nil {
		r.undo(ctx, id)
		return runtime.Sandbox{}, err
	}
	s := runtime.Sandbox{
		ID:      id,
		Name:    spec.Name,
		Labels:  podSpec(r.owner, spec).PodSpecGen.Labels,
		Created: infra.Created,
		Running: true,
		PID:     infra.State.Pid,
	}
	if err := r.bound(ctx, s, spec.Resources); err != nil {
		r.undo(ctx, id)
		return runtime.Sandbox{}, err
	}
	r.remember(s)
	return s, nil
}

// bound sets a new sandbox's resources. That it cannot be weighed is told and no reason
// not to run it; that it cannot be limited is.
func (r *Runtime) bound(ctx context.Context, s runtime.Sandbox, res runtime.Resources) error {
	if res == (runtime.Resources{}) {
		return nil
	}
	err := r.UpdateSandbox(ctx, s, res)
	if err != nil && res.CPUQuota == 0 && res.MemoryLimit == 0 {
		r.log.Warn("sandbox has the same weight as any other", "sandbox", s.Name, "error", err)
		return nil
	}
	return err
}

func (r *Runtime) createPod(ctx context.Context, spec runtime.SandboxSpec) (string, error) {
	return call(ctx, r.engineOf(spec.Handler), func(ctx context.Context) (string, error) {
		report, err := pods.CreatePodFromSpec(ctx, podSpec(r.owner, spec))
		if err != nil {
			return "", err
		}
		return report.Id, nil
	})
}

func (r *Runtime) startInfra(ctx context.Context, sandbox string) (*define.InspectContainerData, error) {
	if err := do(ctx, r.engine, func(ctx context.Context) error {
		return containers.Start(ctx, infraName(sandbox), nil)
	}); err != nil {
		return nil, fmt.Errorf("start infra container: %w", err)
	}
	infra, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, infraName(sandbox), nil)
	})
	if err != nil {
		return nil, fmt.Errorf("inspect infra container: %w", err)
	}
	if infra.State == nil || !infra.State.Running {
		return nil, errors.New("the infra container ended at once")
	}
	return infra, nil
}

// undo removes a pod whose creation failed half-way. Where the caller's time is
// over it is not waited for.
func (r *Runtime) undo(ctx context.Context, pod string) {
	remove := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		if err := r.removePod(ctx, pod); err != nil {
			r.log.Error("half-made sandbox is left behind", "sandbox", pod, "error", err)
		}
	}
	if ctx.Err() != nil {
		go remove()
		return
	}
	remove()
}

// undoUnknown removes the pod of that name if it is ours and younger than began:
// an older one is somebody's live sandbox.
func (r *Runtime) undoUnknown(ctx context.Context, name string, began time.Time) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	pod, err := call(ctx, r.engine, func(ctx context.Context) (*entities.PodInspectReport, error) {
		return pods.Inspect(ctx, name, nil)
	})
	if errors.Is(err, runtime.ErrNotFound) {
		return
	}
	if err == nil && pod.Labels[runtime.LabelOwner] == r.owner && pod.Created.After(began) {
		err = r.removePod(ctx, pod.ID)
	}
	if err != nil {
		r.log.Error("half-made sandbox may be left behind", "sandbox", name, "error", err)
	}
}

// StopSandbox implements runtime.Runtime. It does not use Podman's own stop of a
// pod: that does nothing when the infra container is dead.
func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	all, err := r.containersOf(ctx, "pod", id)
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	infra := ""
	group, groupCtx := errgroup.WithContext(ctx)
	for _, c := range all {
		if c.IsInfra {
			infra = c.ID
			continue
		}
		group.Go(func() error { return r.StopContainer(groupCtx, c.ID, 0) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	if infra == "" {
		return nil
	}
	if err := r.StopContainer(ctx, infra, 0); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return nil
}

// RemoveSandbox implements runtime.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	if err := r.removePod(ctx, id); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

// removePod removes a pod with all in it; one that is not there is no error.
func (r *Runtime) removePod(ctx context.Context, nameOrID string) error {
	select {
	case r.ends <- struct{}{}:
		defer func() { <-r.ends }()
	case <-ctx.Done():
		return ctx.Err()
	}
	report, err := call(ctx, r.engine, func(ctx context.Context) (*entities.PodRmReport, error) {
		return pods.Remove(ctx, nameOrID, new(pods.RemoveOptions).WithForce(true).WithTimeout(0))
	})
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return err
	}
	r.forget(nameOrID)
	id := nameOrID // of one that is gone already: removed by a call whose answer came too late
	if err == nil && report != nil && report.Id != "" {
		id = report.Id
	}
	groups, err := r.cgroups()
	if err == nil {
		err = groups.sweep(id)
	}
	if err != nil { // the pod is gone all the same
		r.log.Warn("control groups of a removed sandbox are left behind", "sandbox", id, "error", err)
	}
	return nil
}
