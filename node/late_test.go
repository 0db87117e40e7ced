package node

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// givenUpStart is an engine whose storage does not answer when it starts the first container:
// it does so when it is released, long after the call was given up, and says nothing of the
// sandbox until a second later.
type givenUpStart struct {
	runtime.Runtime
	w        *world
	calls    atomic.Int32
	released chan struct{}
}

func (l *givenUpStart) StartContainer(ctx context.Context, id string) error {
	if l.calls.Add(1) > 1 {
		return l.Runtime.StartContainer(ctx, id)
	}
	list, err := l.Runtime.List(ctx, nil)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(s runtime.Sandbox) bool {
		return slices.ContainsFunc(s.Containers, func(c runtime.Container) bool { return c.ID == id })
	})
	resume := l.w.machine.Stall(list[i].ID)
	go func() {
		<-l.released
		if err := l.Runtime.StartContainer(context.Background(), id); err != nil {
			l.w.t.Error(err)
		}
		time.Sleep(time.Second)
		resume()
	}()
	<-ctx.Done()
	return ctx.Err()
}

// A container that starts after its start was given up is the same attempt: it is adopted,
// and counts as it ends.
func TestLateStart(t *testing.T) {
	const head = "metadata: {name: a}\nspec:\n"
	const web = "  containers: [{name: web, image: \"localhost/hello:1\"}]\n"
	ends := func(code int) func(context.Context, memory.Process) int {
		return func(context.Context, memory.Process) int { return code }
	}
	for _, tt := range []struct {
		name, pod string
		script    map[string]func(context.Context, memory.Process) int
		want, log string
	}{
		{"always", head + web, nil, "Running ready=True web:running", "start web"},
		{"never", head + "  restartPolicy: Never\n" + web, nil, "Running ready=True web:running", "start web"},
		{
			"on failure", head + "  restartPolicy: OnFailure\n" + web,
			map[string]func(context.Context, memory.Process) int{"web": ends(0)},
			"Succeeded ready=False web:Completed(0)", "start web\nend web 0",
		},
		{
			"never, failed", head + "  restartPolicy: Never\n" + web,
			map[string]func(context.Context, memory.Process) int{"web": ends(3)},
			"Failed ready=False web:Error(3)", "start web\nend web 3",
		},
		{
			"init", head + "  initContainers: [{name: first, image: \"localhost/hello:1\"}]\n" + web,
			map[string]func(context.Context, memory.Process) int{"first": ends(0)},
			"Running ready=True first:Completed(0) web:running", "start first\nend first 0\nstart web",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.stop()
				late := &givenUpStart{w: w, released: make(chan struct{})}
				w.wrap = func(rt runtime.Runtime) runtime.Runtime { late.Runtime = rt; return late }
				w.start()
				for name, f := range tt.script {
					w.script[name] = f
				}
				w.create(tt.pod)
				w.sleep(callTimeout + time.Minute)
				if w.notes() != "" {
					t.Fatalf("it has started: %s", w.notes())
				}
				close(late.released)
				w.sleep(callTimeout)
				w.expect("a", tt.want)
				if have := w.notes(); have != tt.log {
					t.Errorf("containers did:\n%s\nwant:\n%s", have, tt.log)
				}
			})
		})
	}
}

// A start that hangs and comes to nothing is made again, as the same attempt.
func TestStartIsTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		first := &hungStart{}
		w.wrap = func(rt runtime.Runtime) runtime.Runtime { first.Runtime = rt; return first }
		w.start()
		w.create("metadata: {name: a}\nspec:\n  restartPolicy: Never\n  containers: [{name: web, image: \"localhost/hello:1\"}]\n")
		w.sleep(callTimeout + time.Second)
		w.expect("a", "Pending ready=False web:RunContainerError")
		w.sleep(retryEngine)
		w.expect("a", "Running ready=True web:running")
	})
}

// hungStart never starts the first container.
type hungStart struct {
	runtime.Runtime
	calls atomic.Int32
}

func (h *hungStart) StartContainer(ctx context.Context, id string) error {
	if h.calls.Add(1) > 1 {
		return h.Runtime.StartContainer(ctx, id)
	}
	<-ctx.Done()
	return ctx.Err()
}
