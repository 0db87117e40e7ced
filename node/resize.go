package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// resize changes a running container's resources in place.
func (w *worker) resize(ctx context.Context, action plan.Action) {
	pod := w.spec()
	c := spec.Find(pod, action.Container)
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	want := spec.Resources(pod, c)
	err := w.spare(ctx, action.ID, want.MemoryLimit)
	if err == nil {
		err = w.a.cfg.Runtime.UpdateContainer(ctx, action.ID, want)
	}
	if err != nil && ctx.Err() == nil {
		w.containerEvent(c.Name, v1.EventTypeWarning, "ResizeError", "Error resizing container: %v", err)
	} else if err == nil {
		w.containerEvent(c.Name, v1.EventTypeNormal, "ResizeCompleted", "Container resized")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.memory[c.Name]
	if err != nil {
		m.Resizing, m.Wanted, m.Retry = err.Error(), &want, time.Now().Add(retryConfig)
		return
	}
	m.Resizing, m.Wanted, m.Retry, m.Resources = "", nil, time.Time{}, &want
}

// resizeSandbox is a task that changes the resources of the pod as a whole.
const resizeSandbox plan.Kind = "resize sandbox"

// boundSandbox brings the sandbox's resources to what the pod names: after a resize, or
// where a former daemon did not remember them. It returns when to be called again; zero:
// never for that. Called with mu.
func (w *worker) boundSandbox(now time.Time) time.Time {
	want := spec.PodResources(w.pod)
	if !w.halt.Since.IsZero() || w.sandbox == nil || !w.sandbox.Running || w.busy[""] != nil || w.bounds != nil && *w.bounds == want || w.room.reason != "" {
		return time.Time{}
	}
	if now.Before(w.notBefore) {
		return w.notBefore
	}
	sandbox := *w.sandbox
	w.launchWhole(task{Task: plan.Task{Kind: resizeSandbox}}, "ResizeError", "Error resizing pod: %v", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		err := w.a.cfg.Runtime.UpdateSandbox(ctx, sandbox, want)
		if err != nil && (errors.Is(err, runtime.ErrNotFound) || want.CPUQuota == 0 && want.MemoryLimit == 0) && ctx.Err() == nil {
			// It has ended, or it can only not be weighed: no reason to bother it.
			w.a.log.Warn("weigh pod", "pod", w.name(), "error", err)
			err = nil
		}
		if err == nil {
			w.mu.Lock()
			w.bounds = &want
			w.mu.Unlock()
		}
		return err
	})
	return time.Time{}
}

// spare keeps a container from being killed by a limit below what it uses: it may
// give some back, and is looked at again.
func (w *worker) spare(ctx context.Context, id string, limit int64) error {
	w.mu.Lock()
	sandbox := w.sandbox
	w.mu.Unlock()
	if limit == 0 || sandbox == nil {
		return nil
	}
	used, err := w.a.cfg.Runtime.Usage(ctx, *sandbox)
	if err != nil {
		return err
	}
	if have := used[id].Memory; have >= limit {
		return fmt.Errorf("attempting to set memory limit (%d) below current usage (%d)", limit, have)
	}
	return nil
}

// room is why a pod's new resources do not fit, in kubelet's words; empty if they do.
type room struct{ reason, message string }

// book notes what the pod asks for now, if it runs with that or it fits beside the others.
// Called with mu, once in a step.
func (w *worker) book() {
	w.room = room{}
	if w.resizes() {
		w.room = w.a.ledger.resize(w.pod, w.a.node.allocatable())
	} else {
		w.a.ledger.update(w.pod)
	}
}

// resizes: a container, or the pod as a whole, runs with other resources than the pod
// names. Called with mu.
func (w *worker) resizes() bool {
	if !w.halt.Since.IsZero() {
		return false
	}
	if w.bounds != nil && *w.bounds != spec.PodResources(w.pod) && w.sandbox != nil && w.sandbox.Running {
		return true
	}
	return slices.ContainsFunc(spec.Containers(w.pod), func(c *v1.Container) bool {
		m, actual := w.memory[c.Name], plan.Newest(w.sandbox, c.Name)
		return actual != nil && actual.State == runtime.Running && m.Resources != nil && *m.Resources != spec.Resources(w.pod, c)
	})
}

// resizeAgain is when a pod that did not fit is looked at again.
const resizeAgain = 30 * time.Second

// reportResize says in conditions, as kubelet does, that resources are not yet what
// the pod names, and why. Called with mu.
func (w *worker) reportResize(out *v1.PodStatus, now time.Time) {
	old := slices.Clone(out.Conditions)
	out.Conditions = slices.DeleteFunc(out.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodResizePending || c.Type == v1.PodResizeInProgress
	})
	if !w.resizes() {
		return
	}
	next := v1.PodCondition{Type: v1.PodResizeInProgress, Status: v1.ConditionTrue, ObservedGeneration: w.pod.Generation, LastTransitionTime: metav1.NewTime(now)}
	if r := w.room; r.reason != "" {
		next.Type, next.Reason, next.Message = v1.PodResizePending, r.reason, r.message
		w.tellOnce("resize", v1.EventTypeWarning, "Resize"+r.reason, "%s", r.message)
	}
	for _, c := range spec.Containers(w.pod) {
		m := w.memory[c.Name]
		if next.Type == v1.PodResizeInProgress && m.Wanted != nil && *m.Wanted == spec.Resources(w.pod, c) {
			next.Reason, next.Message = v1.PodReasonError, m.Resizing
		}
	}
	for _, c := range old {
		if c.Type == next.Type && c.Reason == next.Reason && c.Message == next.Message {
			next.LastTransitionTime = c.LastTransitionTime
		}
	}
	out.Conditions = append(out.Conditions, next)
}
