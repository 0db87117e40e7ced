package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/volumes"
	"github.com/rundigitalplatform/rookery/runtime"
)

// act begins an action. Called with mu.
func (w *worker) act(action plan.Action) {
	t := task{Task: plan.Task{Kind: action.Kind, Grace: action.Grace}, id: action.ID}
	switch action.Kind {
	case plan.CancelStart, plan.CancelStop:
		w.busy[action.Container].cancel()
	case plan.Start:
		w.launch(action.Container, t, func(ctx context.Context) bool { return w.start(ctx, action) })
	case plan.Stop:
		w.launch(action.Container, t, func(ctx context.Context) bool {
			w.stop(ctx, action)
			return false // the engine knows how it ended
		})
	case plan.Resize:
		w.launch(action.Container, t, func(ctx context.Context) bool { w.resize(ctx, action); return true })
	case plan.SetupVolumes:
		w.launchWhole(t, "FailedMount", "MountVolume.SetUp failed for %v", w.setupVolumes)
	case plan.RunSandbox:
		w.launchWhole(t, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", w.runSandbox)
	case plan.RemoveSandbox:
		w.launchWhole(t, "FailedKillPod", "error killing pod: %v", func(ctx context.Context) error { return w.removeSandbox(ctx, action.Container) })
	case plan.Attach:
		w.launchWhole(t, "FailedCreatePodSandBox", "Failed to set up the pod's network: %v", w.attach)
	case plan.Teardown:
		w.launchWhole(t, "FailedKillPod", "error killing pod: %v", func(ctx context.Context) error { return w.teardown(ctx, action.Remove) })
	}
}

// Failures of the pod as a whole are tried again after 1 s, doubling to 2 min.
const (
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
)

// launchWhole runs a task for the pod as a whole; a failure is told and delays the next.
func (w *worker) launchWhole(t task, reason, format string, f func(ctx context.Context) error) {
	w.launch("", t, func(ctx context.Context) bool {
		err := f(ctx)
		w.mu.Lock()
		if err == nil {
			w.failures, w.notBefore = 0, time.Time{}
			w.mu.Unlock()
			return true
		}
		delay := min(firstRetry<<min(w.failures, 10), lastRetry)
		w.failures++
		w.notBefore = time.Now().Add(delay)
		w.mu.Unlock()
		if ctx.Err() == nil { // otherwise the daemon ends; nothing failed
			w.event(v1.EventTypeWarning, reason, format, err)
			w.a.log.Warn("act for pod", "pod", w.name(), "action", t.Kind, "error", err, "retry", delay)
		}
		return false
	})
}

func (w *worker) info() spec.PodInfo {
	w.mu.Lock()
	ips := w.podIPs
	w.mu.Unlock()
	return spec.PodInfo{
		PodIPs: ips, HostIPs: w.a.cfg.hostIPs(),
		Allocatable: w.a.node.allocatable(), Services: w.a.serviceList(),
	}
}

func (w *worker) setupVolumes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod := w.spec()
	w.a.follow(pod) // first, so that no change is missed
	next, err := w.a.volumes.Setup(ctx, pod, w.info(), w.a.objects.forPod(ctx, pod.UID))
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.volumes = true
	}
	if w.renew != nil {
		w.renew.Stop()
		w.renew = nil
	}
	if !next.IsZero() && !w.closed {
		w.renew = time.AfterFunc(time.Until(next), w.refresh)
	}
	return err
}

func (w *worker) runSandbox(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.mu.Lock()
	w.attempt++
	pod := w.pod
	s, err := spec.Sandbox(pod, w.attempt, w.a.cfg.ClusterDomain)
	w.mu.Unlock()
	if err == nil && spec.OwnUsers(pod) {
		s.IDs, err = w.a.volumes.IDs(pod.UID)
	}
	if err != nil {
		return err
	}
	handler, err := w.a.handler(pod)
	if err != nil {
		return err
	}
	s.Handler = handler
	sandbox, err := w.a.cfg.Runtime.RunSandbox(ctx, s)
	if errors.Is(err, runtime.ErrNoHandler) {
		return fmt.Errorf("failed to get sandbox runtime: no runtime for %q is configured: %w", handler, err)
	}
	if errors.Is(err, runtime.ErrExists) {
		// Made before by a call whose answer was lost; it is ours by its name.
		list, listErr := w.a.cfg.Runtime.List(ctx, map[string]string{spec.LabelPodUID: string(pod.UID)})
		if listErr != nil {
			return errors.Join(err, listErr)
		}
		for _, have := range list {
			if have.Name == s.Name {
				sandbox, err = have, nil
			}
		}
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.sandbox, w.attached, w.torn, w.bounds = &sandbox, false, 0, &s.Resources
	w.mu.Unlock()
	if pod.Spec.HostNetwork || sandbox.Running {
		return w.attach(ctx) // at once: another step would only cost time
	}
	return nil
}

// attach gives the sandbox its addresses and the pod its /etc.
func (w *worker) attach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.mu.Lock()
	pod, sandbox := w.pod, w.sandbox
	w.mu.Unlock()
	if sandbox == nil {
		return nil // gone meanwhile; the next step makes another
	}
	ips := w.a.cfg.hostIPs()
	if !pod.Spec.HostNetwork {
		addrs, err := w.a.cfg.Network.Attach(ctx, string(pod.UID), sandbox.PID, spec.Ports(pod))
		if err != nil {
			return err
		}
		ips = nil
		for _, a := range addrs {
			ips = append(ips, a.String())
		}
	}
	err := w.a.volumes.WriteEtc(pod, volumes.Etc{
		PodIPs: ips, ClusterDNS: w.a.cfg.ClusterDNS, ClusterDomain: w.a.cfg.ClusterDomain,
		HostHosts: hostFile("/etc/hosts"),
		// systemd-resolved's own file names the real servers; the other one names a
		// loopback address that no pod reaches.
		HostResolv: hostFile("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"),
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.podIPs, w.attached = ips, true
	w.mu.Unlock()
	return nil
}

// removeSandbox removes one that is dead, so that the next can be made, or one in which
// trigger has ended so that all containers start over.
func (w *worker) removeSandbox(ctx context.Context, trigger string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.mu.Lock()
	old := w.sandbox
	w.mu.Unlock()
	if old == nil {
		return nil
	}
	if trigger == "" {
		w.event(v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	if err := w.a.cfg.Runtime.RemoveSandbox(ctx, old.ID); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	plan.SandboxReplaced(w.pod, w.memory, old, time.Now(), w.terminated)
	if trigger != "" {
		plan.Reset(w.pod, w.memory, trigger)
	}
	w.sandbox, w.attached = nil, false
	return nil
}

// teardown ends what is left when no container runs any more. A pod that ended by
// itself keeps its containers for logs; of a deleted one nothing remains.
func (w *worker) teardown(ctx context.Context, remove bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.mu.Lock()
	sandbox, pod := w.sandbox, w.pod
	w.a.unfollow(pod.UID)
	for name, m := range w.memory {
		if c := plan.Newest(sandbox, name); c != nil && m.Ended == nil && !m.Fresh && c.State == runtime.Exited {
			m.Ended = w.terminated(name, c)
		}
	}
	w.mu.Unlock()
	if sandbox != nil {
		end := w.a.cfg.Runtime.StopSandbox
		if remove {
			end = w.a.cfg.Runtime.RemoveSandbox
		}
		if err := end(ctx, sandbox.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return err
		}
	}
	if !pod.Spec.HostNetwork {
		if err := w.a.cfg.Network.Detach(ctx, string(pod.UID)); err != nil {
			return err
		}
	}
	level := 1
	if remove {
		level = 2
		if err := w.a.volumes.Cleanup(pod.UID); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.torn, w.attached = level, false
	if remove {
		w.sandbox = nil
	} else {
		w.markDirty()
	}
	return nil
}
