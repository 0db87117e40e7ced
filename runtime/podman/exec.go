package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/api/handlers"
	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Exec implements runtime.Runtime by three API calls. When ctx ends first, the
// command is killed: Podman would let it run.
func (r *Runtime) Exec(ctx context.Context, containerID string, opts runtime.ExecOptions) (int, error) {
	if len(opts.Command) == 0 {
		return 0, errors.New("exec: the command is empty")
	}
	code, err := r.exec(ctx, containerID, opts)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", containerID, err)
	}
	return code, nil
}

func (r *Runtime) exec(ctx context.Context, containerID string, opts runtime.ExecOptions) (int, error) {
	config := &handlers.ExecCreateConfig{}
	config.Cmd, config.Tty = opts.Command, opts.TTY
	config.AttachStdin, config.AttachStdout, config.AttachStderr = opts.Stdin != nil, true, true
	session, err := call(ctx, r.engine, func(ctx context.Context) (string, error) {
		return containers.ExecCreate(ctx, containerID, config)
	})
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(map[string]any{"Detach": false, "Tty": opts.TTY})
	if err != nil {
		return 0, err
	}
	s, err := r.engine.hijack(ctx, "/exec/"+session+"/start", nil, body)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	stop := r.forwardSizes(ctx, opts.Resize, func(ctx context.Context, size runtime.Size) error {
		return containers.ResizeExecTTY(ctx, session, new(containers.ResizeExecTTYOptions).WithHeight(int(size.Height)).WithWidth(int(size.Width)))
	})
	defer stop()
	said := &head{to: orDiscard(opts.Stderr)}
	opts.Stderr = said
	if opts.TTY {
		said.to = orDiscard(opts.Stdout)
		opts.Stdout = said
	}
	if err := s.pump(ctx, opts.Streams); err != nil {
		if ctx.Err() != nil {
			go r.killExec(ctx, session)
		}
		return 0, err
	}
	code, err := r.exitCode(ctx, session)
	if err != nil {
		return 0, err
	}
	return code, notStarted(code, said.data)
}

// head passes on what is written and keeps its beginning.
type head struct {
	to   io.Writer
	data []byte
}

func (h *head) Write(p []byte) (int, error) {
	const enough = 4096 // Podman's message about a failed start comes in one piece and first
	h.data = append(h.data, p[:min(len(p), enough-len(h.data))]...)
	return h.to.Write(p)
}

// notStarted tells a command that could not be started from one that exited with
// the same code. Podman's only sign is a message on the command's own output.
func notStarted(code int, said []byte) error {
	const cannotRun, notFound = 126, 127 // as the shells have it
	message, ok := bytes.CutPrefix(said, []byte("Error: "))
	if !ok || code != cannotRun && code != notFound {
		return nil
	}
	for _, cause := range []error{define.ErrOCIRuntimeNotFound, define.ErrOCIRuntimePermissionDenied, define.ErrOCIRuntime} {
		if first, _, ok := bytes.Cut(message, []byte(cause.Error())); ok {
			return errors.New(strings.TrimSuffix(string(first), ": "))
		}
	}
	return nil
}

// exitCode waits for what the stream's end does not quite promise: that the code is recorded.
func (r *Runtime) exitCode(ctx context.Context, session string) (int, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		data, err := r.inspectExec(ctx, session)
		if err != nil {
			return 0, err
		}
		if !data.Running {
			return data.ExitCode, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (r *Runtime) inspectExec(ctx context.Context, session string) (*define.InspectExecSession, error) {
	return call(ctx, r.engine, func(ctx context.Context) (*define.InspectExecSession, error) {
		return containers.ExecInspect(ctx, session, nil)
	})
}

// killExec ends a command whose caller has gone. The API has no call for it, but
// tells the PID, and the engine is on this machine.
func (r *Runtime) killExec(ctx context.Context, session string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	data, err := r.inspectExec(ctx, session)
	if errors.Is(err, runtime.ErrNotFound) {
		return // the container went, and the command with it
	}
	if err == nil && data.Running && data.Pid > 0 {
		err = syscall.Kill(data.Pid, syscall.SIGKILL)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		r.log.Warn("command may be left running", "session", session, "error", err)
	}
}

// forwardSizes sets the terminal's size whenever the caller sends one, until the
// returned function is called.
func (r *Runtime) forwardSizes(ctx context.Context, sizes <-chan runtime.Size, set func(context.Context, runtime.Size) error) context.CancelFunc {
	ctx, cancel := context.WithCancel(ctx)
	if sizes == nil {
		return cancel
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-sizes:
				if !ok {
					return
				}
				err := do(ctx, r.engine, func(ctx context.Context) error { return set(ctx, size) })
				if err != nil && ctx.Err() == nil {
					r.log.Debug("terminal cannot be resized", "error", err)
				}
			}
		}
	}()
	return cancel
}
