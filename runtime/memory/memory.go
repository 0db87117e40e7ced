// Package memory is a [runtime.Runtime] without containers: sandboxes,
// containers, images and logs live in memory, and what a container does is a Go
// function. It is a small working engine, not a mock: it passes the suite in
// runtime/runtimetest that Podman passes.
//
// A [Machine] is the engine; [Machine.Runtime] is a daemon's connection to it.
// A second connection sees what the first one made, as a restarted daemon does.
// There are no processes and no namespaces: PIDs are made up, and wiring a
// sandbox's network is for the caller to fake. Tests and simulations call it.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Config says how a machine behaves. It is copied.
type Config struct {
	// Run is the life of every container; it returns the exit code. ctx ends when the container is
	// killed, and its result is then ignored. nil: the container runs until the stop signal comes and exits with 143.
	Run func(ctx context.Context, p Process) int
	// Exec runs a command in a running container. ctx ends with the call or the container. nil: every
	// command exits with 0 at once.
	Exec func(ctx context.Context, spec runtime.ContainerSpec, opts runtime.ExecOptions) (int, error)
	// Usage tells what a container has used that has run for so long: CPU time, and
	// bytes of memory. nil: nothing.
	Usage func(spec runtime.ContainerSpec, ran time.Duration) (cpu time.Duration, memory int64)
	// Disk tells how many bytes a container has written on top of its image. nil: none.
	Disk func(spec runtime.ContainerSpec) int64
	// Images are local from the start.
	Images []runtime.Image
	// Registry is what PullImage finds.
	Registry []runtime.Image
	// Pull is asked before that, without lock; its error is what PullImage returns. nil: every
	// image of the registry is anybody's.
	Pull func(ctx context.Context, ref string, auth *runtime.RegistryAuth) error
	// Handlers are the OCI runtimes that are known beside the default one.
	Handlers []string
	// ImageDir is where images are mounted: DIR/ID. Empty: they cannot be.
	ImageDir string
	// StartDelay is how long RunSandbox and StartContainer take; 0: no time.
	StartDelay time.Duration
}

// Process is a running container as Config.Run sees it.
type Process struct {
	Spec           runtime.ContainerSpec
	Stdin          io.Reader // never nil; at its end unless ContainerSpec.Stdin
	Stdout, Stderr io.Writer
	Resize         <-chan runtime.Size // sizes that Attach sends
	Stop           <-chan struct{}     // closed by the stop signal
}

// Machine is an engine in memory. All methods may be called concurrently.
type Machine struct {
	cfg Config

	mu          sync.Mutex
	down        error
	stalled     map[string]chan struct{} // by id; closed when its calls go on
	sandboxes   map[string]*sandbox
	containers  map[string]*container
	images      []runtime.Image
	registry    []runtime.Image
	subscribers map[*subscriber]struct{}
	lastID      int
	lastPID     int
	running     sync.WaitGroup
}

// New returns an empty machine.
func New(cfg Config) *Machine {
	if cfg.Run == nil {
		cfg.Run = untilStopped
	}
	if cfg.Exec == nil {
		cfg.Exec = func(context.Context, runtime.ContainerSpec, runtime.ExecOptions) (int, error) { return 0, nil }
	}
	m := &Machine{
		cfg:         cfg,
		stalled:     map[string]chan struct{}{},
		sandboxes:   map[string]*sandbox{},
		containers:  map[string]*container{},
		subscribers: map[*subscriber]struct{}{},
		lastPID:     100_000,
	}
	if m.cfg.Usage == nil {
		m.cfg.Usage = func(runtime.ContainerSpec, time.Duration) (time.Duration, int64) { return 0, 0 }
	}
	if m.cfg.Disk == nil {
		m.cfg.Disk = func(runtime.ContainerSpec) int64 { return 0 }
	}
	for _, img := range cfg.Images {
		m.AddImage(img)
	}
	for _, img := range cfg.Registry {
		m.registry = append(m.registry, normalise(img))
	}
	return m
}

func untilStopped(ctx context.Context, p Process) int {
	select {
	case <-p.Stop:
		return 143
	case <-ctx.Done():
		return 137
	}
}

// Runtime returns a connection that sees the sandboxes of owner only.
func (m *Machine) Runtime(owner string) *Runtime { return &Runtime{m: m, owner: owner} }

// SetAvailable makes every call of every connection fail with
// runtime.ErrUnavailable, and ends every event stream, until it is called with
// true again. Containers run on.
func (m *Machine) SetAvailable(available bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if available {
		m.down = nil
		return
	}
	m.down = fmt.Errorf("call memory engine: %w", runtime.ErrUnavailable)
	for s := range m.subscribers {
		m.cutOff(s, m.down)
	}
}

// Kill ends a running container as a signal from outside would.
func (m *Machine) Kill(containerID string, exitCode int, oom bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[containerID]
	if c == nil {
		return fmt.Errorf("kill container %s: %w", containerID, runtime.ErrNotFound)
	}
	m.end(c, c.run, exitCode, oom)
	return nil
}

// KillSandbox ends a sandbox's infra container, as a signal from outside would;
// the sandbox's containers run on.
func (m *Machine) KillSandbox(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sandboxes[id]
	if s == nil {
		return fmt.Errorf("kill sandbox %s: %w", id, runtime.ErrNotFound)
	}
	m.killInfra(s)
	return nil
}

// Crash kills every container and every sandbox, as a power loss would.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sandboxes {
		m.kill(s)
	}
}

// Close crashes the machine and waits until every Run function has returned.
func (m *Machine) Close() {
	m.Crash()
	m.running.Wait()
}

// Runtime is one owner's connection to a Machine.
type Runtime struct {
	m     *Machine
	owner string
}

var _ runtime.Runtime = (*Runtime)(nil)

// enter takes the machine's lock for a call about the sandbox or container of that id,
// if it is about one, unless the call cannot happen.
func (m *Machine) enter(ctx context.Context, ids ...string) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.mu.Lock()
		if down := m.down; down != nil {
			m.mu.Unlock()
			return down
		}
		wait := m.stalled[""]
		for _, id := range ids {
			wait = cmp.Or(wait, m.stalled[id])
		}
		if wait == nil {
			return nil
		}
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
}

// Stall makes calls hang that are about the sandbox of that id, or all of them if it
// is empty, until their context ends or the returned function is called. Events come.
func (m *Machine) Stall(id string) (resume func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stalled[id] = make(chan struct{})
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if wait := m.stalled[id]; wait != nil {
			close(wait)
			delete(m.stalled, id)
		}
	}
}

// delay passes the time that a start takes.
func (m *Machine) delay(ctx context.Context) error {
	if m.cfg.StartDelay == 0 {
		return nil
	}
	timer := time.NewTimer(m.cfg.StartDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newID returns an id that looks like an engine's. Called with the lock.
func (m *Machine) newID() string {
	m.lastID++
	return fmt.Sprintf("%064x", m.lastID)
}

// Ping implements runtime.Runtime.
func (r *Runtime) Ping(ctx context.Context) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("ping memory engine: %w", err)
	}
	r.m.mu.Unlock()
	return nil
}

// Info names the engine "memory".
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	if err := r.m.enter(ctx); err != nil {
		return runtime.Info{}, err
	}
	defer r.m.mu.Unlock()
	return runtime.Info{Name: "memory", Version: "1.0.0", OCIRuntime: "none", CgroupV2: true, StoreFree: -1}, nil
}
