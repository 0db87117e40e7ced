package node

import (
	"bytes"
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// minGrace is what is left between signal and kill even if preStop used it all up.
const minGrace = 2 * time.Second

// engineSlack is how long the engine may take for a stop beyond the grace itself: a
// hundred stops at once take a board over a minute.
const engineSlack = callTimeout

// stop ends a running container: preStop, signal, kill.
func (w *worker) stop(ctx context.Context, action plan.Action) {
	pod := w.spec()
	w.containerEvent(action.Container, v1.EventTypeNormal, "Killing", "%s", action.Why)
	w.mu.Lock()
	if p := w.probes[action.Container]; p != nil && p.id == action.ID {
		p.set.Cancel() // a container that is being stopped is not judged any more
	}
	w.mu.Unlock()
	deadline := time.Now().Add(action.Grace)
	c := spec.Find(pod, action.Container)
	if c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && action.Grace > 0 {
		hook, cancel := context.WithDeadline(ctx, deadline)
		if err := w.hook(hook, pod, c, action.ID, c.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
			w.containerEvent(c.Name, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
		cancel()
	}
	if ctx.Err() != nil {
		return
	}
	grace := max(time.Until(deadline), minGrace)
	call, cancel := context.WithTimeout(ctx, grace+engineSlack)
	defer cancel()
	if err := w.a.cfg.Runtime.StopContainer(call, action.ID, grace); err != nil && ctx.Err() == nil {
		w.a.log.Warn("stop container", "pod", w.name(), "container", action.Container, "error", err)
		w.containerEvent(action.Container, v1.EventTypeWarning, "FailedKillPod", "error killing container: %v", err)
		wait(ctx, retryEngine) // the next step asks again
	}
}

// postStart runs the hook; a container whose hook fails is stopped, as in kubelet.
func (w *worker) postStart(ctx context.Context, pod *v1.Pod, c *v1.Container, id string) {
	err := w.hook(ctx, pod, c, id, c.Lifecycle.PostStart)
	if err == nil || ctx.Err() != nil {
		return
	}
	w.containerEvent(c.Name, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
	w.mu.Lock()
	w.unhealthy[id] = "FailedPostStartHook"
	w.mu.Unlock()
}

// hook runs one lifecycle handler until it ends or ctx does.
func (w *worker) hook(ctx context.Context, pod *v1.Pod, c *v1.Container, id string, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, output, err := w.exec(ctx, id, h.Exec.Command)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, code, bytes.TrimSpace(output))
		}
		return nil
	case h.HTTPGet != nil:
		return w.a.prober.HTTPGet(ctx, c, w.podIP(), h.HTTPGet)
	case h.Sleep != nil:
		wait(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	case h.TCPSocket != nil:
		return fmt.Errorf("tcpSocket is not a lifecycle handler; use exec, httpGet or sleep")
	}
	return nil
}

func (w *worker) podIP() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.podIPs) == 0 {
		return ""
	}
	return w.podIPs[0]
}

// maxExecOutput is how much output of a probe or hook is kept.
const maxExecOutput = 10 << 10

// exec runs a command for a probe or hook.
func (w *worker) exec(ctx context.Context, id string, command []string) (int, []byte, error) {
	var out limited
	code, err := w.a.cfg.Runtime.Exec(ctx, id, runtime.ExecOptions{
		Command: command,
		Streams: runtime.Streams{Stdout: &out, Stderr: &out},
	})
	return code, out.bytes(), err
}
