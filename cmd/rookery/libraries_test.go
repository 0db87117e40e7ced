package main

import (
	"bytes"
	"runtime/pprof"
	"testing"

	"k8s.io/client-go/util/workqueue"
)

// Were it not for package quietqueues, each named queue would wake twice a second.
func TestNamedQueuesDoNotMeasure(t *testing.T) {
	q := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: "stock"})
	defer q.ShutDown()
	var goroutines bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&goroutines, 2); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(goroutines.Bytes(), []byte("updateUnfinishedWorkLoop")) {
		t.Errorf("a queue measures:\n%s", &goroutines)
	}
}
