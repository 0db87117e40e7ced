package node

import (
	"context"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
)

// refreshVolumes is a task that changes nothing about the sandbox.
const refreshVolumes plan.Kind = "refresh volumes"

// refresh says that the contents of volumes may be out of date: an object was changed, a
// token wants to be renewed.
func (w *worker) refresh() {
	w.mu.Lock()
	w.stale = true
	if !w.volumes {
		w.notBefore = time.Time{} // it may be what the pod waits for
	}
	w.mu.Unlock()
	w.kick()
}

// refreshFiles brings the contents of volumes up to date if they may not be, and says
// when to ask again; zero: when there is news. What cannot be read keeps what it had, and
// is tried again on news or, with pauses, without. Called with mu.
func (w *worker) refreshFiles(now time.Time) (wake time.Time) {
	switch {
	case !w.stale || !w.volumes || w.busy[""] != nil || !w.halt.Since.IsZero():
		return time.Time{} // the end of the task leads here again
	case now.Before(w.refreshAt):
		return w.refreshAt
	}
	w.stale = false
	w.launch("", task{Task: plan.Task{Kind: refreshVolumes}}, func(ctx context.Context) bool {
		err := w.setupVolumes(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.failing, w.refreshAt = 0, time.Time{}
			return true
		}
		delay := min(firstRetry<<min(w.failing, 10), lastRetry)
		w.failing++
		w.stale, w.refreshAt = true, time.Now().Add(delay)
		if ctx.Err() == nil {
			w.a.events.Eventf(w.pod, v1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for %v", err)
			w.a.log.Warn("refresh volumes", "pod", w.pod.Namespace+"/"+w.pod.Name, "error", err, "retry", delay)
		}
		return true
	})
	return time.Time{}
}

// tellsOther: what the downward API says in files is not the same for both.
func tellsOther(old, pod *v1.Pod) bool {
	if old == pod || !downward(pod) {
		return false
	}
	if !maps.Equal(old.Labels, pod.Labels) || !maps.Equal(old.Annotations, pod.Annotations) {
		return true
	}
	for _, c := range spec.Containers(pod) {
		if was := spec.Find(old, c.Name); was != nil && !apiequality.Semantic.DeepEqual(was.Resources, c.Resources) {
			return true
		}
	}
	return false
}

// downward: the pod has files of the downward API.
func downward(pod *v1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if v.DownwardAPI != nil {
			return true
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.DownwardAPI != nil {
					return true
				}
			}
		}
	}
	return false
}
