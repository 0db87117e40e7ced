package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Usage implements runtime.Runtime by Config.Usage.
func (r *Runtime) Usage(ctx context.Context, s runtime.Sandbox) (map[string]runtime.Usage, error) {
	if err := r.m.enter(ctx); err != nil {
		return nil, fmt.Errorf("read usage of sandbox %s: %w", s.Name, err)
	}
	defer r.m.mu.Unlock()
	mine := r.m.sandboxes[s.ID]
	if mine == nil || !mine.state.Running {
		return nil, fmt.Errorf("read usage of sandbox %s: it does not run: %w", s.Name, runtime.ErrNotFound)
	}
	now := time.Now()
	out := map[string]runtime.Usage{}
	for _, asked := range s.Containers {
		c := r.m.containers[asked.ID]
		if c == nil || c.sandbox != mine || c.state.State != runtime.Running {
			continue
		}
		cpu, memory := r.m.cfg.Usage(c.spec, now.Sub(c.state.Started))
		out[asked.ID] = runtime.Usage{At: now, CPU: cpu, Memory: memory, Processes: 1}
	}
	return out, nil
}

// Disk implements runtime.Runtime by Config.Disk and the logs in memory.
func (r *Runtime) Disk(ctx context.Context, s runtime.Sandbox) (map[string]runtime.DiskUsage, error) {
	if err := r.m.enter(ctx); err != nil {
		return nil, fmt.Errorf("read disk usage of sandbox %s: %w", s.Name, err)
	}
	defer r.m.mu.Unlock()
	out := map[string]runtime.DiskUsage{}
	for _, asked := range s.Containers {
		c := r.m.containers[asked.ID]
		if c == nil || c.sandbox.state.ID != s.ID {
			continue
		}
		out[asked.ID] = runtime.DiskUsage{
			Layer: runtime.Space{Bytes: r.m.cfg.Disk(c.spec), Inodes: 1},
			Logs:  runtime.Space{Bytes: c.out.size(), Inodes: 1},
		}
	}
	return out, nil
}
