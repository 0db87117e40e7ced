package node

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/plan"
)

// Shutdown ends the pods of this peer because the machine is about to stop: first the
// ordinary ones, then those of critical priority, each with its own grace but no more
// than it is given here. A pod that would come back after a loss of power is not over: it
// runs again after the boot, from what is on disk. Others have failed, as with kubelet. The
// Node is not ready from then on, and pods that come wait. It returns when all have ended,
// those that run again are on disk and those that failed in the API, or ctx ends. Resume takes it back; the
// next daemon knows nothing of it.
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

// Resume is called when the machine stays up after all, when Shutdown has returned: the
// Node is ready again, pods are taken, and those run again that would have after the boot.
func (a *Agent) Resume() {
	if !a.node.setStopping(false) {
		return
	}
	a.log.Info("the machine does not stop: its pods run again")
	for _, w := range a.allWorkers() {
		w.resume()
	}
}

const (
	terminated      = "Terminated"
	shutdownMessage = "Pod was terminated in response to imminent node shutdown."
)

// shutdown begins the end of the pod, unless it ends already.
func (w *worker) shutdown(grace time.Duration) {
	w.mu.Lock()
	if w.halt.Since.IsZero() {
		w.halt = plan.Halt{Since: time.Now(), Grace: min(podGrace(w.pod), grace), Resumes: plan.Resumes(w.pod) || !w.begun()}
		if !w.halt.Resumes {
			w.failed, w.message = terminated, shutdownMessage
			w.disruption = &v1.PodCondition{
				Type: v1.DisruptionTarget, Status: v1.ConditionTrue, LastTransitionTime: metav1.Now(),
				Reason: v1.PodReasonTerminationByKubelet, Message: shutdownMessage,
			}
		}
	}
	w.mu.Unlock()
	w.kick()
}

// resume lets a pod run again that was ended with the machine.
func (w *worker) resume() {
	w.mu.Lock()
	if w.halt.Resumes {
		// Its volumes are set up once more, for nothing has followed their sources.
		w.halt, w.torn, w.over, w.volumes = plan.Halt{}, 0, false, false
	}
	w.mu.Unlock()
	w.kick()
}

// ended: nothing of the pod runs, and that is where it has to be known.
func (w *worker) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.halt.Resumes {
		return w.closed || w.over
	}
	phase := w.pod.Status.Phase
	return w.torn > 0 && w.busy[""] == nil && (phase == v1.PodFailed || phase == v1.PodSucceeded)
}
