package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

func testEvents(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	ready, events, ended := make(chan struct{}), make(chan runtime.Event, 100), make(chan error, 1)
	go func() {
		ended <- f.rt.Events(ctx, func() { close(ready) }, func(e runtime.Event) { events <- e })
	}()
	<-ready
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "exit", "0"))
	f.until(s, id, runtime.Exited)
	f.must("remove", f.rt.RemoveContainer(f.ctx, id))
	f.must("stop", f.rt.StopSandbox(f.ctx, s.ID))
	f.must("remove", f.rt.RemoveSandbox(f.ctx, s.ID))

	want := []runtime.Event{
		{Type: runtime.SandboxStarted, Sandbox: s.Name},
		{Type: runtime.ContainerStarted, Sandbox: s.Name, Container: id},
		{Type: runtime.ContainerDied, Sandbox: s.Name, Container: id},
		{Type: runtime.ContainerRemoved, Sandbox: s.Name, Container: id},
		{Type: runtime.SandboxEnded, Sandbox: s.Name},
		{Type: runtime.SandboxEnded, Sandbox: s.Name},
	}
	deadline := time.After(waitTime)
	for seen := []runtime.Event(nil); len(want) > 0; {
		select {
		case e := <-events:
			seen = append(seen, e)
			if e.Sandbox != s.Name {
				t.Errorf("event of another: %+v", e)
			}
			if e == want[0] {
				want = want[1:]
			}
		case err := <-ended:
			t.Fatalf("stream ended: %v", err)
		case <-deadline:
			t.Fatalf("missing %+v; came %+v", want, seen)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Events returned %v after its context ended, want nil", err)
	}
}

func testExec(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a"))
	exec := func(stdin string, args ...string) (int, string, string) {
		t.Helper()
		var stdout, stderr buffer
		opts := runtime.ExecOptions{Command: append([]string{f.Program}, args...), Streams: runtime.Streams{Stdout: &stdout, Stderr: &stderr}}
		if stdin != "" {
			opts.Stdin = strings.NewReader(stdin)
		}
		code, err := f.rt.Exec(f.ctx, id, opts)
		f.must("exec", err)
		return code, stdout.String(), stderr.String()
	}
	if code, out, err := exec("", "exit", "7"); code != 7 || out+err != "" {
		t.Errorf("exit 7: %d, %q, %q", code, out, err)
	}
	if code, out, err := exec("", "echo", "a", "b"); code != 0 || out != "a b\n" || err != "" {
		t.Errorf("echo: %d, %q, %q", code, out, err)
	}
	if code, out, err := exec("", "no-such-verb"); code != 2 || out != "" || !strings.Contains(err, "unknown verb") {
		t.Errorf("stderr: %d, %q, %q", code, out, err)
	}
	long := strings.Repeat("0123456789abcde\n", 20_000)
	if code, out, err := exec(long, "cat"); code != 0 || out != long || err != "" {
		t.Errorf("cat of %d bytes: %d, %d bytes, %q", len(long), code, len(out), err)
	}
	if f.Processes {
		_, err := f.rt.Exec(f.ctx, id, runtime.ExecOptions{Command: []string{"/no/such/program"}})
		if err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrUnavailable) {
			t.Errorf("exec of a program that is not there: %v", err)
		}
		if code, out, _ := exec("", "exit", "127"); code != 127 || out != "" {
			t.Errorf("exit 127: %d", code)
		}
		testExecTTY(t, f, id)
	}
	f.must("stop", f.rt.StopContainer(f.ctx, f.listening(id), 5*time.Second))
	if _, err := f.rt.Exec(f.ctx, id, runtime.ExecOptions{Command: []string{f.Program, "exit", "0"}}); err == nil {
		t.Error("exec in a stopped container is no error")
	}
}

func testExecTTY(t *testing.T, f *fixture, id string) {
	var stdout, stderr buffer
	sizes := make(chan runtime.Size, 1)
	sizes <- runtime.Size{Width: 100, Height: 30}
	code, err := f.rt.Exec(f.ctx, id, runtime.ExecOptions{
		Command: []string{f.Program, "echo", "hello"},
		Streams: runtime.Streams{Stdout: &stdout, Stderr: &stderr, TTY: true, Resize: sizes},
	})
	if err != nil || code != 0 || stdout.String() != "hello\r\n" || stderr.String() != "" {
		t.Errorf("exec with a terminal: %d, %v, %q, %q", code, err, stdout.String(), stderr.String())
	}
}

func testExecCancel(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a"))
	ctx, cancel := context.WithCancel(f.ctx)
	stdin, _ := io.Pipe()
	defer stdin.Close()
	began := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		close(began)
		_, err := f.rt.Exec(ctx, id, runtime.ExecOptions{Command: []string{f.Program, "lines", "1"}, Streams: runtime.Streams{Stdin: stdin, Stdout: writerFunc(func(p []byte) (int, error) {
			cancel()
			return len(p), nil
		})}})
		done <- err
	}()
	<-began
	select {
	case err := <-done:
		f.wantErr("a cancelled exec", err, context.Canceled)
	case <-time.After(waitTime):
		t.Fatal("a cancelled exec does not return")
	}
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

func testAttach(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "cat")
	spec.Stdin, spec.StdinOnce = true, true
	id := f.start(s, spec)
	stdin, in := io.Pipe()
	var stdout, stderr buffer
	done := make(chan error, 1)
	go func() {
		done <- f.rt.Attach(f.ctx, id, runtime.Streams{Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	}()
	_, err := io.WriteString(in, "hello\n")
	f.must("write", err)
	f.poll("output arrives", func() bool { return stdout.String() == "hello\n" })
	in.Close()
	select {
	case err := <-done:
		f.must("attach", err)
	case <-time.After(waitTime):
		t.Fatal("attach does not end with the container")
	}
	if c := f.until(s, id, runtime.Exited); c.ExitCode != 0 {
		t.Errorf("container is %+v", c)
	}
}

// attached is a client of a container that runs cat.
type attached struct {
	f     *fixture
	in    *io.PipeWriter
	out   *buffer
	leave context.CancelFunc
	done  chan error
}

func (f *fixture) attach(id string) *attached {
	ctx, leave := context.WithCancel(f.ctx)
	f.t.Cleanup(leave)
	stdin, in := io.Pipe()
	a := &attached{f, in, &buffer{}, leave, make(chan error, 1)}
	go func() { a.done <- f.rt.Attach(ctx, id, runtime.Streams{Stdin: stdin, Stdout: a.out}) }()
	return a
}

// says writes a line and waits until it comes back.
func (a *attached) says(line string) {
	a.f.t.Helper()
	_, err := fmt.Fprintln(a.in, line)
	a.f.must("write", err)
	a.f.poll(line+" comes back", func() bool { return strings.Contains(a.out.String(), line+"\n") })
}

func (a *attached) ended() {
	a.f.t.Helper()
	select {
	case err := <-a.done:
		a.f.must("attach", err)
	case <-time.After(waitTime):
		a.f.t.Fatal("attach does not end")
	}
}

// testAttachAgain: without StdinOnce the input outlives who writes to it.
func testAttachAgain(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "cat")
	spec.Stdin = true
	id := f.start(s, spec)
	first := f.attach(id)
	first.says("first")
	first.in.Close()
	first.ended()
	second := f.attach(id)
	second.says("second")
	second.leave()
	second.ended()
	third := f.attach(id)
	third.says("third")
	if out := third.out.String(); out != "third\n" {
		t.Errorf("the third one sees %q", out)
	}
}

// testAttachOnce: with StdinOnce the input ends with who writes to it, also if that one just
// leaves, and not with who only reads.
func testAttachOnce(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "cat")
	spec.Stdin, spec.StdinOnce = true, true
	id := f.start(s, spec)
	writer := f.attach(id)
	writer.says("first")
	var seen buffer
	ctx, leave := context.WithCancel(f.ctx)
	defer leave()
	reads := make(chan error, 1)
	go func() { reads <- f.rt.Attach(ctx, id, runtime.Streams{Stdout: &seen}) }()
	f.poll("who only reads sees it", func() bool { // it may come late
		_, err := io.WriteString(writer.in, "both\n")
		f.must("write", err)
		return seen.String() != ""
	})
	leave()
	select {
	case err := <-reads:
		f.must("attach", err)
	case <-time.After(waitTime):
		t.Fatal("attach does not end")
	}
	writer.says("last")
	writer.leave()
	writer.ended()
	if c := f.until(s, id, runtime.Exited); c.ExitCode != 0 {
		t.Errorf("container is %+v", c)
	}
}

func testLogs(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "lines", "50"))
	read := func(opts runtime.LogOptions) (stdout, stderr []string) {
		t.Helper()
		var out, err buffer
		f.must("logs", f.rt.Logs(f.ctx, id, opts, &out, &err))
		return out.lines(), err.lines()
	}
	f.poll("all lines are there", func() bool {
		out, err := read(runtime.LogOptions{})
		return len(out) == 50 && len(err) == 50
	})
	out, errs := read(runtime.LogOptions{})
	for i := range 50 {
		if out[i] != fmt.Sprintf("out %d", i) || errs[i] != fmt.Sprintf("err %d", i) {
			t.Fatalf("line %d is %q and %q", i, out[i], errs[i])
		}
	}
	for _, n := range []int64{0, 1, 5, 1000} {
		out, errs := read(runtime.LogOptions{Tail: &n})
		if got, want := int64(len(out)+len(errs)), min(n, 100); got != want {
			t.Errorf("tail of %d gave %d lines", n, got)
		}
	}
	future := time.Now().Add(time.Hour)
	if out, errs := read(runtime.LogOptions{Since: future}); len(out)+len(errs) != 0 {
		t.Errorf("since tomorrow gave %q, %q", out, errs)
	}
	out, _ = read(runtime.LogOptions{Timestamps: true, Since: time.Now().Add(-time.Hour)})
	if len(out) != 50 {
		t.Fatalf("since an hour ago gave %d lines", len(out))
	}
	stamp, text, _ := strings.Cut(out[49], " ")
	if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || time.Since(at).Abs() > time.Minute || text != "out 49" {
		t.Errorf("line with a timestamp is %q", out[49])
	}
}

func testLogsFollow(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	id := f.start(s, f.spec("a", "lines", "3"))
	var stdout, stderr buffer
	done := make(chan error, 1)
	go func() { done <- f.rt.Logs(f.ctx, id, runtime.LogOptions{Follow: true}, &stdout, &stderr) }()
	f.poll("lines arrive", func() bool { return len(stdout.lines()) == 3 && len(stderr.lines()) == 3 })

	ctx, cancel := context.WithCancel(f.ctx)
	cancelled := make(chan error, 1)
	go func() {
		cancelled <- f.rt.Logs(ctx, id, runtime.LogOptions{Follow: true}, writerFunc(func(p []byte) (int, error) {
			cancel()
			return len(p), nil
		}), nil)
	}()
	select {
	case err := <-cancelled:
		f.must("follow with a context that ends", err)
	case <-time.After(waitTime):
		t.Fatal("follow does not end with its context")
	}
	f.must("stop", f.rt.StopContainer(f.ctx, id, 10*time.Second))
	select {
	case err := <-done:
		f.must("follow", err)
	case <-time.After(waitTime):
		t.Fatal("follow does not end with the container")
	}
	if lines := stdout.lines(); lines[len(lines)-1] != "stopping" {
		t.Errorf("followed lines are %q", lines)
	}
}

// testLogsRotation follows a log that is rotated again and again, a few times a second.
func testLogsRotation(t *testing.T, f *fixture) {
	s := f.sandbox("pod")
	spec := f.spec("a", "cat")
	spec.Stdin, spec.StdinOnce, spec.LogMaxBytes = true, true, 1<<20
	id := f.start(s, spec)
	var out buffer
	first := make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- f.rt.Logs(f.ctx, id, runtime.LogOptions{Follow: true}, writerFunc(func(p []byte) (int, error) {
			once.Do(func() { close(first) })
			return out.Write(p)
		}), nil)
	}()
	const lines = 100_000 // some 5 MB with their times, so about 5 files
	in, feed := io.Pipe()
	attached := make(chan error, 1)
	go func() { attached <- f.rt.Attach(f.ctx, id, runtime.Streams{Stdin: in}) }()
	if _, err := fmt.Fprintln(feed, "line 0"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first:
	case <-time.After(waitTime):
		t.Fatal("the first line does not come")
	}
	var text strings.Builder
	for i := 1; i < lines; i++ {
		fmt.Fprintln(&text, "line", i)
		if i%5000 == 0 || i == lines-1 {
			_, err := io.WriteString(feed, text.String())
			f.must("write", err)
			text.Reset()
			time.Sleep(100 * time.Millisecond) // a file lasts for longer than the kernel takes to tell of it
		}
	}
	f.must("close", feed.Close())
	f.must("attach", <-attached)
	select {
	case err := <-done:
		f.must("follow", err)
	case <-time.After(waitTime):
		t.Fatal("follow does not end with the container")
	}
	for i, line := range out.lines() {
		if line != fmt.Sprint("line ", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if n := len(out.lines()); n != lines {
		t.Errorf("%d lines, want %d", n, lines)
	}
}

func testImages(t *testing.T, f *fixture) {
	names, err := f.rt.LoadImage(f.ctx, bytes.NewReader(f.Archive))
	f.must("load", err)
	if !slices.Equal(names, []string{"localhost/loaded:1"}) {
		t.Errorf("load returned %q", names)
	}
	byName, err := f.rt.Image(f.ctx, "loaded:1")
	f.must("look up by short name", err)
	if !slices.Contains(byName.Names, "localhost/loaded:1") || !strings.HasPrefix(byName.ID, "sha256:") {
		t.Errorf("image is %+v", byName)
	}
	byID, err := f.rt.Image(f.ctx, byName.ID)
	f.must("look up by id", err)
	if byID.ID != byName.ID {
		t.Errorf("by id %+v, by name %+v", byID, byName)
	}
	list, err := f.rt.Images(f.ctx)
	f.must("list", err)
	if !slices.ContainsFunc(list, func(i runtime.Image) bool { return i.ID == byName.ID }) {
		t.Errorf("%s is not in %+v", byName.ID, list)
	}
	_, err = f.rt.LoadImage(f.ctx, strings.NewReader("this is no archive"))
	if err == nil || errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("load of garbage: %v", err)
	}
	s := f.sandbox("pod")
	spec := f.spec("short")
	spec.Image = "loaded:1"
	f.start(s, spec)
}
