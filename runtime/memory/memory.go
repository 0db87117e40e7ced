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
	// Images are local from the start.
	Images []runtime.Image
	// Registry is what PullImage finds.
	Registry []runtime.Image
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
		sandboxes:   map[string]*sandbox{},
		containers:  map[string]*container{},
		subscribers: map[*subscriber]struct{}{},
		lastPID:     100_000,
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

// enter takes the machine's lock for a call, unless the call cannot happen.
func (m *Machine) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	if m.down != nil {
		m.mu.Unlock()
		return m.down
	}
	return nil
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

// Info names the engine "memory".
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	if err := r.m.enter(ctx); err != nil {
		return runtime.Info{}, err
	}
	defer r.m.mu.Unlock()
	return runtime.Info{Name: "memory", Version: "1.0.0", OCIRuntime: "none", CgroupV2: true, StoreFree: -1}, nil
}
