package node

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// startEvents sends what is recorded to the API; the broadcaster aggregates and
// limits per pod. stop drops what was not sent yet.
func startEvents(caster record.EventBroadcaster, client kubernetes.Interface) (stop func()) {
	caster.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return caster.Shutdown
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
