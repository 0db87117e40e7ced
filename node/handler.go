package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/stream"
	"github.com/rundigitalplatform/rookery/node/usage"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Handler serves a kubelet's streaming endpoints for the pods of this peer:
// /containerLogs, /exec, /attach and /portForward; what they use, see [usage.Handler];
// and what else people ask a kubelet for (kubelet.go). It answers from local knowledge
// only, on an island too. The caller decides who may use it.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	streaming, used := stream.Handler(streams{a}, a.cfg.Runtime, a.log), usage.Handler(a.usage, a.cfg.Name, a.log)
	for _, path := range []string{"/containerLogs/", "/exec/", "/attach/", "/portForward/"} {
		mux.Handle(path, streaming)
	}
	for _, path := range []string{"/usage/", "/stats/summary", "/metrics/resource"} {
		mux.Handle(path, used)
	}
	a.kubelet(mux)
	return mux
}

// streams is stream.Pods.
type streams struct{ a *Agent }

// find returns the pod of that name, or nil. One that was removed from the API and is being
// torn down is meant only while there is no other.
func (s streams) find(namespace, name string) *worker {
	var removed *worker
	for _, w := range s.a.allWorkers() {
		w.mu.Lock()
		pod, gone := w.pod, w.gone
		w.mu.Unlock()
		switch {
		case pod.Namespace != namespace || pod.Name != name:
		case gone:
			removed = w
		default:
			return w
		}
	}
	return removed
}

// Has implements stream.Pods.
func (s streams) Has(namespace, pod string) bool { return s.find(namespace, pod) != nil }

// Container implements stream.Pods.
func (s streams) Container(namespace, pod, name string, previous bool) (stream.Container, error) {
	w := s.find(namespace, pod)
	if w == nil {
		return stream.Container{}, &stream.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("pod %q is not on this peer", pod)}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == "" {
		name = w.pod.Spec.Containers[0].Name
	}
	c := spec.Find(w.pod, name)
	if c == nil {
		return stream.Container{}, &stream.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("container %q not found in pod %q", name, pod)}
	}
	actual := plan.Newest(w.sandbox, name)
	if previous {
		if actual = plan.Previous(w.sandbox, name); actual == nil {
			return stream.Container{}, &stream.Error{Status: http.StatusBadRequest,
				Message: fmt.Sprintf("previous terminated container %q in pod %q not found", name, pod)}
		}
	}
	if actual == nil || actual.State == runtime.Created {
		return stream.Container{}, &stream.Error{Status: http.StatusBadRequest,
			Message: fmt.Sprintf("container %q in pod %q is waiting to start: %s", name, pod, w.waitingReason(name))}
	}
	return stream.Container{ID: actual.ID, Running: actual.State == runtime.Running, TTY: c.TTY, Stdin: c.Stdin}, nil
}

// waitingReason is what the status says. Called with mu.
func (w *worker) waitingReason(name string) string {
	if w.reported != nil {
		pod := &v1.Pod{Status: *w.reported}
		if s := oldStatus(pod, name); s != nil && s.State.Waiting != nil {
			if s.State.Waiting.Message != "" {
				return s.State.Waiting.Reason + ": " + s.State.Waiting.Message
			}
			return s.State.Waiting.Reason
		}
	}
	return "ContainerCreating"
}

// Dial implements stream.Pods. It connects inside the pod's network namespace, so
// that programs listening on its loopback, of IPv4 or of IPv6, are reached as kubectl's
// users expect.
func (s streams) Dial(ctx context.Context, namespace, pod string, port int32) (net.Conn, error) {
	w := s.find(namespace, pod)
	if w == nil {
		return nil, fmt.Errorf("pod %s/%s is not on this peer", namespace, pod)
	}
	w.mu.Lock()
	sandbox, host := w.sandbox, w.pod.Spec.HostNetwork
	w.mu.Unlock()
	dial := func(address string) (net.Conn, error) { return dialIn(ctx, sandbox.PID, address) }
	switch {
	case host:
		dial = func(address string) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) }
	case sandbox == nil || !sandbox.Running || sandbox.PID == 0:
		return nil, fmt.Errorf("pod %s/%s is not running", namespace, pod)
	}
	conn, err := dial(net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err == nil {
		return conn, nil
	}
	if conn, err6 := dial(net.JoinHostPort("::1", strconv.Itoa(int(port)))); err6 == nil {
		return conn, nil
	}
	return nil, err // the pod may have no IPv6 at all: what IPv4 said tells more
}
