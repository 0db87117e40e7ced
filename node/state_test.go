package node

import (
	"context"
	"os"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime/memory"
)

// A pod is not over before what the next daemon has to know is on disk.
func TestOverWhenSaved(t *testing.T) {
	inWorld(t, func(w *world) {
		end := make(chan struct{})
		w.script["web"] = func(context.Context, memory.Process) int { <-end; return 0 }
		w.create("metadata: {name: a}\nspec:\n  restartPolicy: Never\n  containers: [{name: web, image: \"localhost/hello:1\"}]\n")
		pod := w.agent.worker("uid-a")
		over := func() bool {
			pod.mu.Lock()
			defer pod.mu.Unlock()
			return pod.over
		}
		path := pod.statePath()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(path+"/in the way", 0o700); err != nil {
			t.Fatal(err)
		}
		close(end)
		w.settle()
		w.expect("a", "Succeeded ready=False web:Completed(0)")
		if over() {
			t.Error("it is over, and not on disk")
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		w.sleep(retryEngine)
		if _, err := os.Stat(path); err != nil || !over() {
			t.Errorf("over: %t, %v", over(), err)
		}
	})
}
