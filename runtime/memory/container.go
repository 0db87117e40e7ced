package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

type container struct {
	spec    runtime.ContainerSpec
	sandbox *sandbox
	state   runtime.Container
	out     *output
	run     *run // the last one, nil if never started
}

// run is one life of a container's process.
type run struct {
	ctx     context.Context // ends by kill
	kill    context.CancelFunc
	stop    chan struct{} // closed by the stop signal
	stopped bool
	done    chan struct{} // closed when it has ended
	stdin   *io.PipeWriter
	resize  chan runtime.Size
}

// CreateContainer implements runtime.Runtime.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, spec runtime.ContainerSpec) (string, error) {
	if err := r.m.enter(ctx, sandboxID); err != nil {
		return "", fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	defer r.m.mu.Unlock()
	s := r.m.sandboxes[sandboxID]
	if s == nil {
		return "", fmt.Errorf("create container %s: sandbox %s: %w", spec.Name, sandboxID, runtime.ErrNotFound)
	}
	img, ok := find(r.m.images, spec.Image)
	if !ok {
		return "", fmt.Errorf("create container %s: image %s: %w", spec.Name, spec.Image, runtime.ErrNotFound)
	}
	for _, c := range r.m.containers {
		if c.state.Name == spec.Name {
			return "", fmt.Errorf("create container %s: %w", spec.Name, runtime.ErrExists)
		}
	}
	c := &container{spec: spec, sandbox: s, out: newOutput(), state: runtime.Container{
		ID:      r.m.newID(),
		Name:    spec.Name,
		Labels:  r.labels(s.state.Name, spec.Labels),
		Image:   spec.Image,
		ImageID: img.ID,
		State:   runtime.Created,
		Created: time.Now(),
	}}
	r.m.containers[c.state.ID] = c
	s.containers = append(s.containers, c)
	return c.state.ID, nil
}

// StartContainer implements runtime.Runtime.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	if err := r.m.delay(ctx); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	c := r.m.containers[id]
	switch {
	case c == nil:
		return fmt.Errorf("start container %s: %w", id, runtime.ErrNotFound)
	case !c.sandbox.state.Running:
		return fmt.Errorf("start container %s: its sandbox does not run", c.spec.Name)
	case c.state.State == runtime.Running:
		return nil
	}
	r.m.start(c)
	return nil
}

// start begins a run. Called with the lock.
func (m *Machine) start(c *container) {
	stdin, stdinWriter := io.Pipe()
	if !c.spec.Stdin {
		stdinWriter.Close() // so that reading it is at its end at once
	}
	run := &run{stop: make(chan struct{}), done: make(chan struct{}), stdin: stdinWriter, resize: make(chan runtime.Size, 16)}
	run.ctx, run.kill = context.WithCancel(context.Background())
	c.run = run
	c.out.open()
	m.lastPID++
	c.state.State, c.state.PID, c.state.Started = runtime.Running, m.lastPID, time.Now()
	c.state.Finished, c.state.ExitCode, c.state.OOMKilled = time.Time{}, 0, false
	m.publish(c.sandbox, runtime.ContainerStarted, c.state.ID)
	p := Process{Spec: c.spec, Stdin: stdin, Stdout: c.out.writer(false), Stderr: c.out.writer(true), Resize: run.resize, Stop: run.stop}
	m.running.Go(func() {
		code := m.cfg.Run(run.ctx, p)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.end(c, run, code, false)
	})
}

// end records how a run ended, unless it has ended already. Called with the lock.
func (m *Machine) end(c *container, run *run, code int, oom bool) {
	if run == nil || c.run != run || c.state.State != runtime.Running {
		return
	}
	run.kill()
	run.stdin.CloseWithError(io.EOF)
	c.state.State, c.state.PID, c.state.Finished = runtime.Exited, 0, time.Now()
	c.state.ExitCode, c.state.OOMKilled = code, oom
	c.out.close()
	close(run.done)
	m.publish(c.sandbox, runtime.ContainerDied, c.state.ID)
}

// UpdateContainer implements runtime.Runtime. The process hears nothing of it.
func (r *Runtime) UpdateContainer(ctx context.Context, id string, res runtime.Resources) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	c := r.m.containers[id]
	switch {
	case c == nil:
		return fmt.Errorf("update container %s: %w", id, runtime.ErrNotFound)
	case c.state.State != runtime.Running:
		return fmt.Errorf("update container %s: it does not run", c.spec.Name)
	}
	c.spec.Resources = res
	return nil
}

// User implements runtime.Runtime. Users with names, and of images, are root here.
func (r *Runtime) User(ctx context.Context, id string) (runtime.User, error) {
	if err := r.m.enter(ctx); err != nil {
		return runtime.User{}, fmt.Errorf("read user of container %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	c := r.m.containers[id]
	if c == nil || c.run == nil {
		return runtime.User{}, fmt.Errorf("read user of container %s: %w", id, runtime.ErrNotFound)
	}
	name, group, _ := strings.Cut(c.spec.User, ":")
	out := runtime.User{Groups: slices.Clone(c.spec.Groups)}
	for text, to := range map[string]*int64{name: &out.UID, group: &out.GID} {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			*to = n
		}
	}
	return out, nil
}

// StopContainer implements runtime.Runtime.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	c := r.m.containers[id]
	if c == nil || c.state.State != runtime.Running {
		r.m.mu.Unlock()
		return nil
	}
	run := c.run
	if !run.stopped && grace > 0 {
		run.stopped = true
		close(run.stop)
	}
	r.m.mu.Unlock()

	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: %w", c.spec.Name, ctx.Err())
	case <-timer.C:
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.end(c, run, 137, false)
	return nil
}

// RemoveContainer implements runtime.Runtime.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	if err := r.m.enter(ctx); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	defer r.m.mu.Unlock()
	c := r.m.containers[id]
	if c == nil {
		return nil
	}
	r.m.end(c, c.run, 137, false)
	delete(r.m.containers, id)
	c.sandbox.containers = slices.DeleteFunc(c.sandbox.containers, func(x *container) bool { return x == c })
	r.m.publish(c.sandbox, runtime.ContainerRemoved, id)
	return nil
}

// current returns a container with its run, which must be going on.
func (r *Runtime) current(ctx context.Context, id string) (*container, *run, error) {
	if err := r.m.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer r.m.mu.Unlock()
	c := r.m.containers[id]
	if c == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	if c.state.State != runtime.Running {
		return nil, nil, fmt.Errorf("container %s does not run", c.spec.Name)
	}
	return c, c.run, nil
}

// Exec implements runtime.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, opts runtime.ExecOptions) (int, error) {
	c, run, err := r.current(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if len(opts.Command) == 0 {
		return 0, errors.New("exec: the command is empty")
	}
	if opts.Stdin == nil {
		opts.Stdin = strings.NewReader("")
	}
	if opts.Stdout == nil {
		opts.Stdout = io.Discard
	}
	if opts.Stderr == nil || opts.TTY {
		opts.Stderr = io.Discard
		if opts.TTY {
			opts.Stderr = opts.Stdout
		}
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(run.ctx, cancel)()
	code, err := r.m.cfg.Exec(both, c.spec, opts)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	return code, nil
}

// Attach implements runtime.Runtime.
func (r *Runtime) Attach(ctx context.Context, id string, streams runtime.Streams) error {
	c, run, err := r.current(ctx, id)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	detach := c.out.attach(&streams)
	defer detach()
	var ended chan struct{} // the input, and the attach with it
	if streams.Stdin != nil && c.spec.Stdin {
		once := c.spec.StdinOnce && !c.spec.TTY
		if once {
			defer run.stdin.Close()
		}
		over := make(chan struct{})
		if !once && !c.spec.TTY {
			ended = over
		}
		go func() { // ends with the caller's reader or with the container's pipe
			_, _ = io.Copy(run.stdin, streams.Stdin) // an error is the end of either
			if once {
				run.stdin.Close()
			}
			close(over)
		}()
	}
	for {
		select {
		case <-run.done:
			return nil
		case <-ctx.Done():
			return nil
		case <-ended:
			return nil
		case size, ok := <-streams.Resize:
			if !ok {
				streams.Resize = nil
				continue
			}
			select {
			case run.resize <- size:
			default: // the process does not look; only the newest size matters anyway
			}
		}
	}
}
