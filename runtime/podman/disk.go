package podman

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/du"
)

// files are where a container's own are on this machine.
type files struct{ layer, log string }

// Disk implements runtime.Runtime. Podman is asked once for each container where its
// files are; what they take is counted here.
func (r *Runtime) Disk(ctx context.Context, s runtime.Sandbox) (map[string]runtime.DiskUsage, error) {
	out := map[string]runtime.DiskUsage{}
	for _, c := range s.Containers {
		at, err := r.filesOf(ctx, c.ID)
		if errors.Is(err, runtime.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read disk usage of sandbox %s: %w", s.Name, err)
		}
		layer, err := du.Of(ctx, at.layer)
		if err != nil {
			return nil, fmt.Errorf("read disk usage of sandbox %s: container %s: %w", s.Name, c.Name, err)
		}
		var logs runtime.Space
		rotated, err := filepath.Glob(at.log + "*")
		for _, log := range rotated {
			var one runtime.Space
			if one, err = du.Of(ctx, log); err != nil {
				break
			}
			logs = logs.Add(one)
		}
		if err != nil {
			return nil, fmt.Errorf("read disk usage of sandbox %s: container %s: %w", s.Name, c.Name, err)
		}
		out[c.ID] = runtime.DiskUsage{Layer: layer, Logs: logs}
	}
	return out, nil
}

func (r *Runtime) filesOf(ctx context.Context, id string) (files, error) {
	r.mu.Lock()
	at, ok := r.files[id]
	r.mu.Unlock()
	if ok {
		return at, nil
	}
	data, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, id, nil)
	})
	if err != nil {
		return files{}, err
	}
	if data.GraphDriver == nil || data.GraphDriver.Data["UpperDir"] == "" {
		return files{}, errors.New("the storage driver keeps no layer of a container apart: use overlay in storage.conf, or no limits on ephemeral-storage")
	}
	at = files{layer: data.GraphDriver.Data["UpperDir"]}
	if data.HostConfig != nil && data.HostConfig.LogConfig != nil {
		at.log = data.HostConfig.LogConfig.Path
	}
	if at.log == "" {
		return files{}, fmt.Errorf("podman does not say where the log of container %s is", id)
	}
	r.mu.Lock()
	r.files[id] = at
	r.mu.Unlock()
	return at, nil
}
