package podman

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Usage implements runtime.Runtime from the counters of the containers' control
// groups, without asking Podman, which would take milliseconds for each.
func (r *Runtime) Usage(ctx context.Context, s runtime.Sandbox) (map[string]runtime.Usage, error) {
	out, err := r.usage(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("read usage of sandbox %s: %w", s.Name, err)
	}
	return out, nil
}

func (r *Runtime) usage(ctx context.Context, s runtime.Sandbox) (map[string]runtime.Usage, error) {
	groups, err := r.cgroups()
	if err != nil {
		return nil, err
	}
	at, err := groups.ofSandbox(s.PID)
	if gone(err) || errors.Is(err, errNoContainer) {
		return nil, fmt.Errorf("it does not run: %w", runtime.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	out := map[string]runtime.Usage{}
	for _, c := range s.Containers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if c.State == runtime.Exited {
			continue
		}
		u, err := groups.read(at, c.ID)
		if gone(err) {
			continue // not started yet, or it has just ended
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		out[c.ID] = u
	}
	return out, nil
}

// gone tells that a process or control group is not there (any more): files of one that
// ends while it is read fail with ESRCH or ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV)
}
