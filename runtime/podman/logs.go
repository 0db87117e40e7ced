package podman

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/rundigitalplatform/rookery/runtime"
)

// logPoll is how often a followed file is looked at where it cannot be watched: the
// kernel allows each user 128 watches, and somebody else may have them all.
const logPoll = 100 * time.Millisecond

// Logs implements runtime.Runtime. It reads the container's k8s-file log itself:
// the API's logs have times to the second only, and following ends there by polling.
func (r *Runtime) Logs(ctx context.Context, containerID string, opts runtime.LogOptions, stdout, stderr io.Writer) error {
	err := r.logs(ctx, containerID, opts, orDiscard(stdout), orDiscard(stderr))
	if err == nil || opts.Follow && ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("read logs of container %s: %w", containerID, err)
}

func (r *Runtime) logs(ctx context.Context, containerID string, opts runtime.LogOptions, stdout, stderr io.Writer) error {
	data, err := call(ctx, r.engine, func(ctx context.Context) (*define.InspectContainerData, error) {
		return containers.Inspect(ctx, containerID, nil)
	})
	if err != nil {
		return err
	}
	opts.Follow = opts.Follow && data.State != nil && data.State.Running
	reader, err := openLog(data, opts, stdout, stderr)
	if err != nil {
		return err
	}
	defer reader.end()
	if !opts.Follow {
		return reader.read(ctx)
	}
	return r.follow(ctx, containerID, reader)
}

// follow reads until the container has ended, and once more after that.
func (r *Runtime) follow(ctx context.Context, containerID string, reader *logReader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- do(ctx, r.engine, func(ctx context.Context) error {
			_, err := containers.Wait(ctx, containerID, new(containers.WaitOptions).WithInterval("250ms"))
			return err
		})
	}()
	var changed <-chan struct{}
	var poll <-chan time.Time
	if reader.watch != nil {
		changed = reader.watch.wake
	} else {
		ticker := time.NewTicker(logPoll)
		defer ticker.Stop()
		poll = ticker.C
	}
	for {
		if err := reader.goOn(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			if err != nil && !errors.Is(err, runtime.ErrNotFound) {
				return fmt.Errorf("wait for its end: %w", err)
			}
			if err := reader.goOn(ctx); err != nil {
				return err
			}
			return reader.reopen(ctx) // a change that was not told yet
		case <-changed:
		case <-poll:
		}
	}
}

// logReader prints a k8s-file log from where it stands. Conmon writes lines of the form
//
//	2024-01-02T03:04:05.678901234+00:00 stdout F text
//
// where P instead of F means that the text goes on in the stream's next line. At
// its maximal size the file is replaced by an empty one.
type logReader struct {
	path           string
	opts           runtime.LogOptions
	stdout, stderr io.Writer
	watch          *logWatch // nil: not followed, or by looking from time to time

	file    *os.File // nil: not there yet
	rest    []byte   // a line without its end
	partial [2]bool  // stdout's and stderr's last line was a P
}

// openLog returns a reader that stands where opts say, and is told of changes with
// Follow. The caller ends it.
func openLog(data *define.InspectContainerData, opts runtime.LogOptions, stdout, stderr io.Writer) (*logReader, error) {
	if data.HostConfig == nil || data.HostConfig.LogConfig == nil || data.HostConfig.LogConfig.Type != logDriver {
		return nil, fmt.Errorf("its log driver is not %s", logDriver)
	}
	l := &logReader{path: data.HostConfig.LogConfig.Path, opts: opts, stdout: stdout, stderr: stderr}
	if opts.Follow {
		if watch, err := watchLog(l.path); err == nil {
			l.watch = watch
		}
	}
	err := l.open()
	if err == nil && opts.Tail != nil {
		err = l.seekTail(*opts.Tail)
	}
	if err != nil {
		l.end()
		return nil, err
	}
	return l, nil
}

// end closes what openLog opened.
func (l *logReader) end() {
	l.close()
	if l.watch != nil {
		l.watch.close()
	}
}

func (l *logReader) open() error {
	file, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was printed yet, or the container was not started
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.file = file
	return nil
}

func (l *logReader) close() {
	if l.file != nil {
		l.file.Close() // only read from
	}
}

// read prints what there is.
func (l *logReader) read(ctx context.Context) error {
	if l.file == nil {
		return nil
	}
	for in := bufio.NewReaderSize(l.file, 32<<10); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		line, err := in.ReadSlice('\n')
		l.rest = append(l.rest, line...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if err := l.print(l.rest); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
		l.rest = l.rest[:0]
	}
}

// missingLines stands for what a reader did not get.
const missingLines = "rookery: lines are missing here: the log was rotated faster than it was read\n"

// goOn prints what came since, through all files that took the log's place meanwhile.
func (l *logReader) goOn(ctx context.Context) error {
	if l.watch == nil {
		if err := l.read(ctx); err != nil {
			return err
		}
		return l.reopen(ctx)
	}
	for {
		next, lost := l.watch.take()
		err := l.read(ctx) // to the end of this one: it is replaced, so nothing comes any more
		if err == nil && lost {
			_, err = io.WriteString(l.stderr, missingLines)
		}
		if err != nil {
			return errors.Join(err, closeFile(next))
		}
		if next == nil {
			return nil
		}
		is, err := same(l.file, next)
		if err != nil {
			return errors.Join(err, closeFile(next))
		}
		if is { // it was replaced just before it was opened
			if err := closeFile(next); err != nil {
				return err
			}
			continue
		}
		l.close()
		l.file, l.rest = next, nil
	}
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// reopen goes on in the new file where the log was rotated.
func (l *logReader) reopen(ctx context.Context) error {
	now, err := os.Stat(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if l.file != nil {
		was, err := l.file.Stat()
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		at, err := l.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		if os.SameFile(now, was) && now.Size() >= at {
			return nil
		}
		if err := l.read(ctx); err != nil { // what came in after the last look
			return err
		}
		l.close()
		l.file, l.rest = nil, nil
	}
	if err := l.open(); err != nil {
		return err
	}
	return l.read(ctx)
}

// logLine is one parsed line.
type logLine struct {
	at      time.Time
	stderr  bool
	partial bool
	text    []byte // without the newline
}

func parseLine(line []byte) (logLine, bool) {
	fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 4)
	if len(fields) != 4 {
		return logLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return logLine{}, false
	}
	return logLine{at: at, stderr: string(fields[1]) == "stderr", partial: string(fields[2]) == "P", text: fields[3]}, true
}

// print writes a line if it is asked for. A line that conmon did not finish, as
// after a power failure, is left out.
func (l *logReader) print(raw []byte) error {
	line, ok := parseLine(raw)
	if !ok {
		return nil
	}
	to, i := l.stdout, 0
	if line.stderr {
		to, i = l.stderr, 1
	}
	goesOn := l.partial[i]
	l.partial[i] = line.partial
	if line.at.Before(l.opts.Since) {
		return nil
	}
	var out []byte
	if l.opts.Timestamps && !goesOn {
		out = append(line.at.UTC().AppendFormat(out, time.RFC3339Nano), ' ')
	}
	out = append(out, line.text...)
	if !line.partial {
		out = append(out, '\n')
	}
	_, err := to.Write(out)
	return err
}

// seekTail stands the reader before the last n lines that the container printed.
func (l *logReader) seekTail(n int64) error {
	if l.file == nil {
		return nil
	}
	starts := make([]int64, 0, min(max(n, 0), 1024)) // of the last n lines, as a ring
	var offset, count int64
	var inside [2]bool
	for in := bufio.NewReaderSize(l.file, 64<<10); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if parsed, ok := parseLine(line); ok {
			i := 0
			if parsed.stderr {
				i = 1
			}
			if !inside[i] && n > 0 {
				if int64(len(starts)) < n {
					starts = append(starts, offset)
				} else {
					starts[count%n] = offset
				}
				count++
			}
			inside[i] = parsed.partial
		}
		offset += int64(len(line))
	}
	if n > 0 && count > 0 {
		offset = starts[0]
		if count > n {
			offset = starts[count%n]
		}
	}
	if _, err := l.file.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}
