package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Attach implements runtime.Runtime. By Podman's attach, unless that would end an
// input which has to go on: conmon closes the container's when any client of it
// leaves, one that only reads too, and Podman cannot ask it for --leave-stdin-open.
func (r *Runtime) Attach(ctx context.Context, containerID string, streams runtime.Streams) error {
	err := r.attach(ctx, containerID, streams)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("attach to container %s: %w", containerID, err)
	}
	return nil
}

func (r *Runtime) attach(ctx context.Context, containerID string, streams runtime.Streams) error {
	data, err := r.inspectRunning(ctx, containerID)
	if err != nil {
		return err
	}
	if !data.Config.OpenStdin {
		streams.Stdin = nil
	}
	streams.TTY = data.Config.Tty // what the stream looks like is the container's choice
	once := streams.Stdin != nil && data.Config.Labels[labelStdinOnce] != ""
	if data.Config.OpenStdin && !streams.TTY && !once {
		return r.attachBeside(ctx, data, streams)
	}
	query := map[string][]string{"stream": {"true"}, "stdout": {"true"}, "stderr": {"true"}}
	if streams.Stdin != nil {
		query["stdin"] = []string{"true"}
	}
	s, err := r.engine.hijack(ctx, "/containers/"+containerID+"/attach", query, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := r.forwardSizes(ctx, streams.Resize, func(ctx context.Context, size runtime.Size) error {
		return containers.ResizeContainerTTY(ctx, containerID, new(containers.ResizeTTYOptions).WithHeight(int(size.Height)).WithWidth(int(size.Width)))
	})
	defer stop()
	return s.pump(ctx, streams)
}

// inspectRunning returns what Podman says of a container that runs, with State and Config.
func (r *Runtime) inspectRunning(ctx context.Context, containerID string) (*define.InspectContainerData, error) {
	data, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, containerID, nil)
	})
	if err != nil {
		return nil, err
	}
	if data.State == nil || !data.State.Running || data.Config == nil {
		return nil, errors.New("it does not run")
	}
	return data, nil
}

// attachBeside attaches without Podman's attach: the output is what comes into the
// log from now on, and the input is written to the pipe that conmon made, which
// conmon holds open when this writer has gone. The end of the input ends it.
func (r *Runtime) attachBeside(ctx context.Context, data *define.InspectContainerData, streams runtime.Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, err := openLog(data, runtime.LogOptions{Follow: true, Tail: new(int64)}, orDiscard(streams.Stdout), orDiscard(streams.Stderr))
	if err != nil {
		return err
	}
	defer reader.end()
	if streams.Stdin != nil {
		pipe, err := r.openStdin(ctx, data)
		if err != nil {
			return fmt.Errorf("open its input: %w", err)
		}
		defer func() { cancel(); pipe.Close() }() // what waits for room in it ends
		go func() {
			defer cancel()
			_, _ = io.Copy(&input{ctx, pipe}, streams.Stdin) // an error is the caller's own reader's, or the end of ctx
		}()
	}
	if err := r.follow(ctx, data.ID, reader); ctx.Err() == nil {
		return err
	}
	return nil
}

// input is a container's until ctx ends. What a program no longer reads is swallowed: it may
// go on printing.
type input struct {
	ctx  context.Context
	pipe *os.File // nil: nobody reads
}

func (i *input) Write(p []byte) (int, error) {
	if i.pipe != nil {
		if _, err := i.pipe.Write(p); err != nil {
			i.pipe = nil
		}
	}
	return len(p), i.ctx.Err()
}

// openStdin opens the pipe that is the standard input of the container's first process, for
// writing. Nil: the process has closed it, or put something else there.
func (r *Runtime) openStdin(ctx context.Context, data *define.InspectContainerData) (*os.File, error) {
	// The file that the number stands for is looked at before it is opened: the container chooses it.
	path := fmt.Sprintf("/proc/%d/fd/0", data.State.Pid)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // it is closed
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	now, err := r.inspectRunning(ctx, data.ID)
	if err != nil {
		return nil, err
	}
	if now.State.Pid != data.State.Pid { // or it was another process's
		return nil, errors.New("it was restarted meanwhile")
	}
	// A pipe has no name: a FIFO that has one may be somebody else's.
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if stat.Type != unix.PIPEFS_MAGIC {
		return nil, nil
	}
	pipe, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, nil // the last reader has just closed it
	}
	return pipe, err
}
