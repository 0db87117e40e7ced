package node

import (
	"bytes"
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// How much of the log stands in for a termination message, as in kubelet.
const (
	fallbackLines = 80
	fallbackBytes = 2048
)

// readMessages reads the last words of containers that have newly exited, once each.
func (w *worker) readMessages() {
	w.mu.Lock()
	pod := w.pod
	var exited []runtime.Container
	if w.sandbox != nil {
		for _, c := range w.sandbox.Containers {
			if _, have := w.messages[c.ID]; !have && c.State == runtime.Exited {
				exited = append(exited, c)
			}
		}
	}
	w.mu.Unlock()
	for _, c := range exited {
		message := w.lastWords(pod, c)
		w.mu.Lock()
		w.messages[c.ID] = message
		w.mu.Unlock()
	}
}

func (w *worker) lastWords(pod *v1.Pod, c runtime.Container) string {
	name, attempt, ok := spec.ContainerIdentity(c)
	if !ok {
		return ""
	}
	message, err := w.a.volumes.TerminationMessage(w.uid, name, attempt)
	if err != nil {
		w.a.log.Warn("read termination message", "pod", w.name(), "container", name, "error", err)
	}
	wanted := spec.Find(pod, name)
	if message != "" || wanted == nil || c.ExitCode == 0 || wanted.TerminationMessagePolicy != v1.TerminationMessageFallbackToLogsOnError {
		return message
	}
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	var out bytes.Buffer
	lines := int64(fallbackLines)
	if err := w.a.cfg.Runtime.Logs(ctx, c.ID, runtime.LogOptions{Tail: &lines}, &out, &out); err != nil {
		w.a.log.Warn("read log for termination message", "pod", w.name(), "container", name, "error", err)
	}
	data := out.Bytes()
	if len(data) > fallbackBytes {
		data = data[len(data)-fallbackBytes:]
	}
	return string(data)
}

// readUsers asks as whom containers were started that run, once each. An engine that does not
// answer is to be asked again; then it says so.
func (w *worker) readUsers() (again bool) {
	w.mu.Lock()
	var running []string
	if w.sandbox != nil {
		for _, c := range w.sandbox.Containers {
			if _, have := w.users[c.ID]; !have && c.State == runtime.Running {
				running = append(running, c.ID)
			}
		}
	}
	w.mu.Unlock()
	for _, id := range running {
		ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
		u, err := w.a.cfg.Runtime.User(ctx, id)
		cancel()
		if errors.Is(err, runtime.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || w.ctx.Err() != nil {
			w.a.log.Warn("read user", "pod", w.name(), "error", err)
			return true // the next would wait for as long
		}
		var user *v1.ContainerUser
		if err != nil {
			if !errors.Is(err, runtime.ErrNotFound) {
				w.a.log.Warn("read user", "pod", w.name(), "error", err)
			}
		} else {
			user = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.UID, GID: u.GID, SupplementalGroups: u.Groups}}
		}
		w.mu.Lock()
		w.users[id] = user
		w.mu.Unlock()
	}
	return false
}
