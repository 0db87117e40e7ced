package podman

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/errorhandling"

	"github.com/rundigitalplatform/rookery/runtime"
)

// ociHandlers are the OCI runtimes that a sandbox may ask for. Podman's API has a field
// for that, which all versions before 6 accept and ignore. What they all obey is the
// runtime that a service was started with: so a handler may have a service of its own,
// on the same storage, and what is created there stays with its runtime.
type ociHandlers struct {
	services map[string]*engine // by handler

	mu     sync.Mutex
	proven map[string]bool // those that the main service has shown to obey
}

func newHandlers(sockets map[string]string) *ociHandlers {
	h := &ociHandlers{services: map[string]*engine{}, proven: map[string]bool{}}
	for name, socket := range sockets {
		h.services[name] = newEngine(socket)
	}
	return h
}

// engineOf is the service that creates what has this handler.
func (r *Runtime) engineOf(handler string) *engine {
	if e := r.handlers.services[handler]; e != nil {
		return e
	}
	return r.engine
}

// checkHandler gives ErrNoHandler unless the sandbox's containers will have the OCI
// runtime of its handler: it has a service, or it is the default, or Podman obeys the field.
func (r *Runtime) checkHandler(ctx context.Context, in home, infra *define.InspectContainerData) error {
	h := r.handlers
	h.mu.Lock()
	proven := h.proven[in.handler]
	h.mu.Unlock()
	if in.handler == "" || proven || h.services[in.handler] != nil || infra.OCIRuntime == in.handler {
		return nil
	}
	probe := holderSpec(r.owner, in, infra.Image)
	probe.OCIRuntime = in.handler
	id, err := call(ctx, r.engine, func(ctx context.Context) (string, error) {
		report, err := containers.CreateWithSpec(ctx, probe, nil)
		var model *errorhandling.ErrorModel
		if errors.As(err, &model) && model.Because == define.ErrInvalidArg.Error() {
			return "", fmt.Errorf("%w: %s", runtime.ErrNoHandler, model.Message)
		}
		return report.ID, err
	})
	if err != nil {
		return err
	}
	made, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, id, nil)
	})
	if err = errors.Join(err, r.RemoveContainer(ctx, id)); err != nil {
		return err
	}
	if made.OCIRuntime != in.handler {
		return fmt.Errorf("%w: %s; this Podman lets nobody choose, so the handler needs a service of its own, named in the setting runtime-handlers", runtime.ErrNoHandler, in.handler)
	}
	h.mu.Lock()
	h.proven[in.handler] = true
	h.mu.Unlock()
	return nil
}
