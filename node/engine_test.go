package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// asked counts what an engine is asked, and may keep it from answering.
type asked struct {
	runtime.Runtime

	mu             sync.Mutex
	lists, looks   int   // of all sandboxes, at one
	pings, unheard int   // unheard: so many pings from now on are not answered
	broken         error // what a list of all fails with
}

func (e *asked) Ping(ctx context.Context) error {
	e.mu.Lock()
	e.pings++
	hangs := e.unheard > 0
	if e.unheard > 0 {
		e.unheard--
	}
	e.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return e.Runtime.Ping(ctx)
}

func (e *asked) List(ctx context.Context, labels map[string]string) ([]runtime.Sandbox, error) {
	e.mu.Lock()
	if labels == nil {
		e.lists++
	}
	broken := e.broken
	e.mu.Unlock()
	if labels == nil && broken != nil {
		return nil, broken
	}
	return e.Runtime.List(ctx, labels)
}

func (e *asked) Inspect(ctx context.Context, id string) (runtime.Sandbox, error) {
	e.mu.Lock()
	e.looks++
	e.mu.Unlock()
	return e.Runtime.Inspect(ctx, id)
}

func (e *asked) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// behind restarts the daemon behind one that counts.
func (w *world) behind() *asked {
	w.stop()
	e := &asked{}
	w.wrap = func(rt runtime.Runtime) runtime.Runtime { e.Runtime = rt; return e }
	w.start()
	return e
}

// One question that was not answered in time is undone by the next that is.
func TestNodeIsReadyAgainAfterOneDeadline(t *testing.T) {
	inWorld(t, func(w *world) {
		e := w.behind()
		w.agent.node.engineDown(context.DeadlineExceeded)
		w.settle()
		if c := w.nodeReady(); c.Status != v1.ConditionFalse {
			t.Fatalf("node: %+v", c)
		}
		w.sleep(pingEvery)
		if c := w.nodeReady(); c.Status != v1.ConditionTrue || e.pings == 0 {
			t.Errorf("node: %+v", c)
		}
	})
}

// An engine that answers, but cannot list what it runs, is no engine until it can: its pings make
// the Node ready no more than its lists make it not.
func TestNodeDoesNotFlap(t *testing.T) {
	inWorld(t, func(w *world) {
		e := w.behind()
		e.set(func() { e.broken = errors.New("layer not known") })
		w.sleep(2 * time.Minute)
		for range 300 {
			if c := w.nodeReady(); c.Status != v1.ConditionFalse {
				t.Fatalf("node: %+v", c)
			}
			w.sleep(time.Second)
		}
		e.set(func() { e.broken = nil })
		w.sleep(2 * time.Minute)
		if c := w.nodeReady(); c.Status != v1.ConditionTrue {
			t.Errorf("node: %+v", c)
		}
	})
}

// While one sandbox hangs the engine is not asked about all others every minute, nor for a
// list that cannot come: whether the sandbox is a pod's or nobody's.
func TestHangingSandboxCostsLittle(t *testing.T) {
	for _, tt := range []struct{ name, hangs string }{{"of a pod", "a"}, {"of none", "old"}} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				e := w.behind()
				for _, name := range []string{"a", "b", "c"} {
					w.create(strings.Replace(plainPod, "name: a", "name: "+name, 1))
				}
				w.sleep(5 * time.Second)
				resume := func() {}
				if tt.hangs == "a" {
					for _, s := range w.sandboxes() {
						if strings.HasPrefix(s.Name, "a_") {
							resume = w.machine.Stall(s.ID)
						}
					}
				} else { // of another program, which nobody looks at
					s, err := w.machine.Runtime("test").RunSandbox(context.Background(), runtime.SandboxSpec{Name: tt.hangs})
					if err != nil {
						t.Fatal(err)
					}
					resume = w.machine.Stall(s.ID)
				}
				w.sleep(10 * time.Minute)
				e.set(func() { e.lists, e.looks = 0, 0 })
				w.sleep(time.Hour)
				e.set(func() {
					if e.lists > 13 || e.looks > 45 { // every 5 min; a question that hangs takes 2 min more
						t.Errorf("in an hour there were %d lists and %d looks", e.lists, e.looks)
					}
				})
				resume()
				w.sleep(askAgain + time.Minute)
				w.agent.mu.Lock()
				defer w.agent.mu.Unlock()
				if w.agent.apart {
					t.Error("they are not listed again")
				}
			})
		})
	}
}

// lateStorage is looked at in vain as long as the engine does not answer.
type lateStorage struct {
	w     *world
	e     *asked
	tries int
}

func (s *lateStorage) Mend(context.Context) ([]runtime.Damage, error) {
	if s.tries++; s.tries == 1 {
		s.e.set(func() { s.e.unheard = 1 }) // it answers the next ping but one
		return nil, context.DeadlineExceeded
	}
	s.w.note("mended")
	return nil, nil
}

func (s *lateStorage) Verify(context.Context) ([]runtime.Damage, error) { return nil, nil }

// No pod starts before the storage was looked at, also when the engine answers just after
// it did not.
func TestNoPodStartsBeforeTheMend(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		e := &asked{}
		w.wrap = func(rt runtime.Runtime) runtime.Runtime { e.Runtime = rt; return e }
		w.storage = &lateStorage{w: w, e: e}
		w.start()
		w.create(plainPod)
		w.sleep(3 * time.Minute)
		if have := w.notes(); have != "mended\nstart web" {
			t.Errorf("in order: %s", have)
		}
	})
}
