package node

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// startEvents sends what is recorded to the API; the broadcaster aggregates and
// limits per pod. stop drops what was not sent yet.
func (a *Agent) startEvents(ctx context.Context) (stop func()) {
	a.caster.StartRecordingToSink(&politeSink{&typedcore.EventSinkImpl{Interface: a.cfg.Client.CoreV1().Events("")}, func(at time.Time) {
		for time.Since(at) < eventPatience && ctx.Err() == nil && a.starting() {
			wait(ctx, eventPoll)
		}
	}})
	return a.caster.Shutdown
}

const (
	// eventPatience is how long an event waits while pods start: seven for each pod would
	// take the time that the pods' status needs, for which traffic waits.
	eventPatience = 3 * time.Second
	eventPoll     = 100 * time.Millisecond
)

// politeSink lets more urgent things go first.
type politeSink struct {
	record.EventSink
	wait func(at time.Time)
}

func (s *politeSink) Create(e *v1.Event) (*v1.Event, error) {
	s.wait(e.LastTimestamp.Time)
	return s.EventSink.Create(e)
}

func (s *politeSink) Patch(e *v1.Event, data []byte) (*v1.Event, error) {
	s.wait(e.LastTimestamp.Time)
	return s.EventSink.Patch(e, data)
}

// starting tells whether something is being done for a pod that is to become Ready.
func (a *Agent) starting() bool {
	for _, w := range a.allWorkers() {
		w.mu.Lock()
		busy := len(w.busy) > 0 && w.halt.Since.IsZero()
		w.mu.Unlock()
		if busy {
			return true
		}
	}
	return false
}

func (w *worker) event(kind, reason, format string, args ...any) {
	w.a.events.Eventf(w.ref(), kind, reason, format, args...)
}

func (w *worker) containerEvent(container, kind, reason, format string, args ...any) {
	ref := w.ref()
	ref.FieldPath = fieldPath(w.spec(), container)
	w.a.events.Eventf(ref, kind, reason, format, args...)
}

func (w *worker) ref() *v1.ObjectReference {
	pod := w.spec()
	return &v1.ObjectReference{
		Kind: "Pod", APIVersion: "v1",
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
	}
}

func fieldPath(pod *v1.Pod, container string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	if spec.Ephemeral(pod, container) != nil {
		return "spec.ephemeralContainers{" + container + "}"
	}
	return "spec.containers{" + container + "}"
}
