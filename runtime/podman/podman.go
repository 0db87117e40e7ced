// Package podman is a [runtime.Runtime] over the API of a Podman service, 4.3
// or newer, reached by its unix socket.
//
// A sandbox is a Podman pod whose infra container holds the namespaces; its
// network is none (or the host's) and is wired by package network afterwards.
// The package decides nothing: restarts, image policies, volumes and /etc files
// are package node's. What a spec becomes is in translate.go, free of calls;
// the other files make the calls. cmd/rookery constructs it, node calls it.
package podman

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/system"

	"github.com/rundigitalplatform/rookery/runtime"
)

// DefaultSocket is where Podman's own systemd unit listens.
const DefaultSocket = "/run/podman/podman.sock"

// maxStarts bounds concurrent creations and starts, each of which forks conmon and an OCI
// runtime: so that a hundred pods after a boot do not take all memory of a small board at once.
// Lower bounds were no faster (docs/design/runtime.md).
const maxStarts = 10

// Config says which engine to use and on whose behalf.
type Config struct {
	Socket string       // path of the API's unix socket; empty: DefaultSocket
	Owner  string       // value of runtime.LabelOwner; only sandboxes with it are listed. Required
	Logger *slog.Logger // nil: slog.Default()
	// Handlers are sockets of further Podman services on the same storage, each started with
	// another OCI runtime (`podman --runtime NAME system service`), by SandboxSpec.Handler.
	Handlers map[string]string
}

// Runtime is a connection to Podman. It is safe for concurrent use, and holds
// nothing that has to be closed but by the end of the process.
type Runtime struct {
	owner  string
	log    *slog.Logger
	engine *engine
	starts chan struct{}
	ends   chan struct{} // a token for each pod that is being removed
	limits limits
	// cgroups finds the counters of containers, once, when they are first asked for.
	cgroups func() (*cgroups, error)

	// search are the registries at which the machine looks for short names; nil: not asked yet.
	search atomic.Pointer[[]string]

	// bundles is where containers' own directories are; nil: not asked yet.
	bundles atomic.Pointer[string]

	preparing chan struct{} // holds one token; whoever has it may read and write prepared
	prepared  bool

	handlers *ociHandlers

	mu    sync.Mutex
	homes map[string]home      // by sandbox id
	ended map[string]endedAt   // by container id: how its last run ended
	in    map[string]string    // by container id: its sandbox's
	oom   map[string]*oomWatch // by container id
	files map[string]files     // by container id
	// accounts are those of images that were asked for, by image id.
	accounts map[string]accounts
}

var _ runtime.Runtime = (*Runtime)(nil)

// New returns a runtime. It does not connect: that happens by the first call.
func New(cfg Config) (*Runtime, error) {
	if cfg.Owner == "" {
		return nil, errors.New("configure podman: the owner is empty")
	}
	limits, err := readLimits("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("configure podman: %w", err)
	}
	return &Runtime{
		owner:     cfg.Owner,
		log:       cmp.Or(cfg.Logger, slog.Default()),
		engine:    newEngine(cmp.Or(cfg.Socket, DefaultSocket)),
		starts:    make(chan struct{}, maxStarts),
		ends:      make(chan struct{}, maxStarts), // a hundred removals at once would each take minutes
		limits:    limits,
		cgroups:   sync.OnceValues(func() (*cgroups, error) { return findCgroups("/proc") }),
		preparing: make(chan struct{}, 1),
		handlers:  newHandlers(cfg.Handlers),
		homes:     map[string]home{},
		ended:     map[string]endedAt{},
		in:        map[string]string{},
		oom:       map[string]*oomWatch{},
		files:     map[string]files{},
		accounts:  map[string]accounts{},
	}, nil
}

// Info implements runtime.Runtime. Podman counts its containers for it, and takes the lock
// of each: one that hangs holds it up.
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	info, err := call(ctx, r.engine, func(ctx context.Context) (runtime.Info, error) {
		report, err := system.Info(ctx, nil)
		if err != nil {
			return runtime.Info{}, err
		}
		out := runtime.Info{Name: "podman", Version: report.Version.Version, StoreFree: -1}
		search := searched(report)
		r.search.Store(&search)
		if report.Host != nil {
			out.CgroupV2 = report.Host.CgroupsVersion == "v2"
			if report.Host.OCIRuntime != nil {
				out.OCIRuntime = report.Host.OCIRuntime.Name
			}
		}
		if s := report.Store; s != nil {
			out.StoreDir = s.GraphRoot
			bundles := filepath.Join(s.GraphRoot, s.GraphDriverName+"-containers")
			r.bundles.Store(&bundles)
			if s.GraphRootAllocated >= s.GraphRootUsed && s.GraphRootAllocated > 0 {
				out.StoreFree = int64(s.GraphRootAllocated - s.GraphRootUsed)
			}
		}
		return out, nil
	})
	if err != nil {
		return runtime.Info{}, fmt.Errorf("ask podman for its version: %w", err)
	}
	return info, nil
}

// searched are the registries of registries.conf's unqualified-search-registries.
func searched(report *define.Info) []string {
	list, _ := report.Registries["search"].([]any) // not there: there are none
	out := []string{}
	for _, item := range list {
		if name, ok := item.(string); ok {
			out = append(out, name)
		}
	}
	return out
}

// Ping asks for the pods of nobody: Podman's own ping touches neither its database nor its
// storage, and an engine that answers that alone is dead in all but name.
func (r *Runtime) Ping(ctx context.Context) error {
	if _, err := r.list(ctx, map[string]string{"rookery.ping": "none"}); err != nil {
		return fmt.Errorf("ping podman: %w", err)
	}
	return nil
}

// slot waits until another creation or start may run; release with the function.
func (r *Runtime) slot(ctx context.Context) (func(), error) {
	select {
	case r.starts <- struct{}{}:
		return func() { <-r.starts }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
