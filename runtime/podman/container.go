package podman

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/domain/entities"
	"github.com/containers/podman/v4/pkg/specgen"
	spec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rundigitalplatform/rookery/runtime"
)

// CreateContainer implements runtime.Runtime. The image is tried by each of the
// names that it may have here, usually the first.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, c runtime.ContainerSpec) (string, error) {
	id, err := r.createContainer(ctx, sandboxID, c)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", c.Name, err)
	}
	return id, nil
}

func (r *Runtime) createContainer(ctx context.Context, sandboxID string, c runtime.ContainerSpec) (string, error) {
	in, err := r.home(ctx, sandboxID)
	if err != nil {
		return "", err
	}
	if err := r.identify(ctx, sandboxID, &c); err != nil {
		return "", err
	}
	release, err := r.slot(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	err = fmt.Errorf("image %q: %w", c.Image, runtime.ErrNotFound)
	for _, image := range r.names(c.Image) {
		generator, specErr := containerSpec(r.owner, in, image, c, r.limits)
		if specErr != nil {
			return "", specErr
		}
		var id string
		id, err = call(ctx, r.engineOf(in.handler), func(ctx context.Context) (string, error) {
			report, err := containers.CreateWithSpec(ctx, generator, nil)
			return report.ID, err
		})
		if err == nil {
			r.mu.Lock()
			r.in[id] = sandboxID
			r.mu.Unlock()
			return id, nil
		}
		if !errors.Is(err, runtime.ErrNotFound) {
			break
		}
	}
	return "", err
}

// StartContainer implements runtime.Runtime.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	release, err := r.slot(ctx)
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	defer release()
	if err := do(ctx, r.engine, func(ctx context.Context) error {
		return containers.Start(ctx, id, nil)
	}); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	r.mu.Lock()
	pid := r.homes[r.in[id]].pid
	r.mu.Unlock()
	r.watch(pid, id)
	return nil
}

// StopContainer implements runtime.Runtime. Podman counts grace in seconds; it is rounded up.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := uint(math.Ceil(max(0, grace.Seconds())))
	err := do(ctx, r.engine, func(ctx context.Context) error {
		return containers.Stop(ctx, id, new(containers.StopOptions).WithTimeout(seconds).WithIgnore(true))
	})
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	return nil
}

// UpdateContainer implements runtime.Runtime. Podman hands it to the OCI runtime,
// for which -1 is unbounded.
func (r *Runtime) UpdateContainer(ctx context.Context, id string, res runtime.Resources) error {
	quota, period, memory := int64(-1), uint64(defaultPeriod), int64(-1)
	if res.CPUQuota != 0 {
		quota, period = res.CPUQuota, cmp.Or(res.CPUPeriod, defaultPeriod)
	}
	if res.MemoryLimit != 0 {
		memory = res.MemoryLimit
	}
	limits := &spec.LinuxResources{
		CPU:    &spec.LinuxCPU{Quota: &quota, Period: &period},
		Memory: &spec.LinuxMemory{Limit: &memory, Swap: &memory},
	}
	if res.CPUShares != 0 {
		limits.CPU.Shares = &res.CPUShares
	}
	generator := &specgen.SpecGenerator{}
	generator.ResourceLimits = limits
	if err := do(ctx, r.engine, func(ctx context.Context) error {
		_, err := containers.Update(ctx, &entities.ContainerUpdateOptions{NameOrID: id, Specgen: generator})
		return err
	}); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// RemoveContainer implements runtime.Runtime.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	err := do(ctx, r.engine, func(ctx context.Context) error {
		_, err := containers.Remove(ctx, id, new(containers.RemoveOptions).WithForce(true).WithIgnore(true).WithVolumes(true).WithTimeout(0))
		return err
	})
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	r.unwatch(func(have string) bool { return have == id })
	return nil
}
