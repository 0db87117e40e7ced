package memory_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
	"github.com/rundigitalplatform/rookery/runtime/runtimetest"
	"github.com/rundigitalplatform/rookery/runtime/runtimetest/guest"
	"github.com/rundigitalplatform/rookery/test/image"
)

const guestImage = "localhost/guest:1"

func newMachine(t *testing.T) *memory.Machine {
	m := memory.New(memory.Config{
		Images: []runtime.Image{{Names: []string{guestImage}}},
		Usage:  guestUsage, Handlers: []string{"other"}, ImageDir: t.TempDir(),
		Run: func(ctx context.Context, p memory.Process) int {
			return guest.Run(ctx, guest.Process{Args: p.Spec.Args, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Stop: p.Stop})
		},
		Exec: func(ctx context.Context, _ runtime.ContainerSpec, opts runtime.ExecOptions) (int, error) {
			code := guest.Run(ctx, guest.Process{Args: opts.Command[1:], Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr})
			return code, nil
		},
	})
	t.Cleanup(m.Close)
	return m
}

// guestUsage is what package guest's program uses of a real machine.
func guestUsage(spec runtime.ContainerSpec, ran time.Duration) (time.Duration, int64) {
	if len(spec.Args) > 0 && spec.Args[0] == "burn" {
		return ran, 20 << 20
	}
	return time.Millisecond, 1 << 20
}

type killer struct {
	*memory.Runtime
	m *memory.Machine
}

func (k killer) KillSandbox(id string) error { return k.m.KillSandbox(id) }

func TestConformance(t *testing.T) {
	m := newMachine(t)
	var archive, removable bytes.Buffer
	for name, to := range map[string]*bytes.Buffer{"localhost/loaded:1": &archive, "localhost/removable:1": &removable} {
		if err := image.Write(to, image.Spec{Names: []string{name}, Labels: map[string]string{"name": name}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("suite", func(t *testing.T) {
		runtimetest.Run(t, runtimetest.Subject{
			Connect: func(_ *testing.T, owner string) runtime.Runtime { return killer{m.Runtime(owner), m} },
			Image:   guestImage,
			Program: "/guest",
			Archive: archive.Bytes(), Removable: removable.Bytes(), Handler: "other",
		})
	})
}

func TestUnavailable(t *testing.T) {
	m := newMachine(t)
	rt := m.Runtime("a")
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- rt.Events(t.Context(), func() { close(ready) }, func(runtime.Event) {}) }()
	<-ready
	m.SetAvailable(false)
	if err := <-ended; !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("event stream ended with %v", err)
	}
	if _, err := rt.List(t.Context(), nil); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("list: %v", err)
	}
	m.SetAvailable(true)
	if _, err := rt.List(t.Context(), nil); err != nil {
		t.Errorf("list: %v", err)
	}
}

func TestPullAndCrash(t *testing.T) {
	m := memory.New(memory.Config{Registry: []runtime.Image{{Names: []string{"docker.io/library/app:1"}}}})
	t.Cleanup(m.Close)
	rt := m.Runtime("a")
	if _, err := rt.PullImage(t.Context(), "app:1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.PullImage(t.Context(), "other:1", nil); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("pull of what is not there: %v", err)
	}
	s, err := rt.RunSandbox(t.Context(), runtime.SandboxSpec{Name: "s"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := rt.CreateContainer(t.Context(), s.ID, runtime.ContainerSpec{Name: "c", Image: "app:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	m.Crash()
	s, err = rt.Inspect(t.Context(), s.ID)
	if err != nil || s.Running || s.Containers[0].State != runtime.Exited || s.Containers[0].ExitCode != 137 {
		t.Errorf("after a crash: %+v, %v", s, err)
	}
}
