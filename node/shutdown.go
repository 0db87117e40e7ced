package node

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/plan"
)

// Shutdown ends the pods of this peer because the machine is about to stop: first the
// ordinary ones, then those of critical priority, each with its own grace but no more
// than it is given here. The Node is not ready from then on, and pods that come are
// refused. It returns when all have ended and the API knows, or ctx ends. Resume takes it
// back; the next daemon knows nothing of it.
func (a *Agent) Shutdown(ctx context.Context, ordinary, critical time.Duration) {
	if !a.node.setStopping(true) {
		return
	}
	a.log.Info("the machine is about to stop: its pods are ended", "grace", ordinary, "critical", critical)
	for _, group := range []struct {
		critical bool
		grace    time.Duration
	}{{false, ordinary}, {true, critical}} {
		var ending []*worker
		for _, w := range a.allWorkers() {
			if eviction.Critical(w.spec()) == group.critical {
				w.shutdown(group.grace)
				ending = append(ending, w)
			}
		}
		limit, cancel := context.WithTimeout(ctx, group.grace)
		for _, w := range ending {
			for !w.ended() && limit.Err() == nil {
				wait(limit, 50*time.Millisecond)
			}
		}
		cancel()
	}
}

// Resume is called when the machine stays up after all: the Node is ready again and pods
// are taken. Those that were ended have failed, and stay so, as with kubelet.
func (a *Agent) Resume() {
	if a.node.setStopping(false) {
		a.log.Info("the machine does not stop: pods are taken again")
	}
}

// shutdown begins the end of the pod, unless it ends already.
func (w *worker) shutdown(grace time.Duration) {
	w.mu.Lock()
	if w.halt.Since.IsZero() {
		w.failed, w.message = "Terminated", "Pod was terminated in response to imminent node shutdown."
		w.halt = plan.Halt{Since: time.Now(), Grace: min(podGrace(w.pod), grace)}
	}
	w.mu.Unlock()
	w.kick()
}

// refuseNew refuses a pod that came after the shutdown began. Called with mu.
func (w *worker) refuseNew(now time.Time) {
	w.failed, w.message = "NodeShutdown", "Pod was rejected as the node is shutting down."
	w.halt = plan.Halt{Since: now}
}

// ended: nothing of the pod runs, and its newest status is in the API as far as this
// peer has heard.
func (w *worker) ended() bool {
	w.mu.Lock()
	over := w.closed || w.torn > 0 && w.busy[""] == nil
	phase := w.pod.Status.Phase
	w.mu.Unlock()
	return over && (phase == v1.PodFailed || phase == v1.PodSucceeded)
}
