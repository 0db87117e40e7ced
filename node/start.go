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
	"github.com/rundigitalplatform/rookery/node/volumes"
	"github.com/rundigitalplatform/rookery/runtime"
)

// waiting is why a container does not run, with kubelet's reason for it.
type waiting struct {
	reason, message string
	retry           time.Duration
}

// retryConfig is when a container is tried again whose spec or objects are at fault,
// as often as kubelet does.
const retryConfig = 10 * time.Second

// start brings one attempt of a container to run: image, create, start, postStart.
// True: what became of it is known.
func (w *worker) start(ctx context.Context, action plan.Action) bool {
	w.mu.Lock()
	pod, sandbox := w.pod, w.sandbox
	w.mu.Unlock()
	c := spec.Find(pod, action.Container)
	if c == nil || sandbox == nil {
		return true
	}
	image, fault := w.ensureImage(ctx, pod, c.Name, c.Image, c.ImagePullPolicy)
	var mounted map[string]string
	if fault == nil {
		mounted, fault = w.mountImages(ctx, pod, sandbox, c)
	}
	known := true
	if fault == nil {
		known, fault = w.createAndStart(ctx, pod, sandbox, c, image, mounted, action.Attempt)
	}
	if fault == nil || ctx.Err() != nil {
		return known
	}
	w.mu.Lock()
	m := w.memory[c.Name]
	m.Waiting = &v1.ContainerStateWaiting{Reason: fault.reason, Message: fault.message}
	m.Retry = time.Now().Add(fault.retry)
	m.Tries++
	w.mu.Unlock()
	w.a.log.Warn("start container", "pod", w.name(), "container", c.Name, "reason", fault.reason, "error", fault.message)
	return known
}

// createAndStart says whether what became of the container is known.
func (w *worker) createAndStart(ctx context.Context, pod *v1.Pod, sandbox *runtime.Sandbox, c *v1.Container, image runtime.Image, mounted map[string]string, attempt int) (known bool, fault *waiting) {
	rt := w.a.cfg.Runtime
	created, err := w.translate(ctx, pod, c, image, mounted, attempt)
	if err != nil {
		w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: %v", err)
		return false, &waiting{"CreateContainerConfigError", err.Error(), retryConfig}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id, err := rt.CreateContainer(call, sandbox.ID, created)
	if errors.Is(err, runtime.ErrExists) {
		// Left by a try that was cut short between creating and starting.
		var ran bool
		ran, err = w.removeLeftover(call, sandbox.ID, created.Name)
		if ran { // the engine had started it after all: it is adopted, not started twice
			w.mu.Lock()
			w.began(sandbox, c.Name, attempt, &created.Resources)
			w.mu.Unlock()
			return false, nil
		}
		if err == nil {
			id, err = rt.CreateContainer(call, sandbox.ID, created)
		}
	}
	if err != nil {
		w.a.images.Forget(c.Image) // it may be the reason
		w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: %v", err)
		return false, &waiting{"CreateContainerError", err.Error(), retryConfig}
	}
	w.mu.Lock()
	m := w.began(sandbox, c.Name, attempt, &created.Resources)
	w.mine[id] = true
	w.did(func(s *runtime.Sandbox) {
		s.Containers = append(s.Containers, runtime.Container{
			ID: id, Name: created.Name, Labels: created.Labels, Image: created.Image, ImageID: image.ID,
			State: runtime.Created, Created: time.Now(),
		})
	})
	w.images[c.Name] = &image
	w.mu.Unlock()
	w.containerEvent(c.Name, v1.EventTypeNormal, "Created", "Container created")

	began := time.Now()
	if err := rt.StartContainer(call, id); err != nil && ctx.Err() != nil {
		return false, &waiting{plan.StartFailed, err.Error(), 0} // the pod has to end, or the daemon: nothing failed
	} else if errors.Is(err, context.DeadlineExceeded) {
		// It may start yet: the engine will tell, and until then this attempt has not ended.
		w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: %v", err)
		w.mu.Lock()
		w.noteLate(err)
		w.mu.Unlock()
		return false, &waiting{plan.StartFailed, err.Error(), retryEngine}
	} else if err != nil {
		w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: %v", err)
		w.mu.Lock()
		now := metav1.Now()
		m.Ended = &v1.ContainerStateTerminated{
			ExitCode: 128, Reason: "StartError", Message: err.Error(), FinishedAt: now, ContainerID: "podman://" + id,
		}
		w.mu.Unlock()
		return false, &waiting{plan.StartFailed, err.Error(), 0}
	}
	w.mu.Lock()
	w.didStart(id, began)
	w.mu.Unlock()
	w.containerEvent(c.Name, v1.EventTypeNormal, "Started", "Container started")
	w.prune(ctx, sandbox, c.Name, attempt)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		w.postStart(ctx, pod, c, id)
	}
	return true, nil
}

// began notes a new attempt, which there is now. Called with mu.
func (w *worker) began(sandbox *runtime.Sandbox, name string, attempt int, with *runtime.Resources) *plan.Memory {
	m := w.memory[name]
	m.Restarted(attempt, w.endOf(sandbox, name))
	m.Resources = with
	return m
}

// endOf is how the attempt ended that is about to be replaced; nil: there was none.
// Called with mu.
func (w *worker) endOf(sandbox *runtime.Sandbox, name string) *v1.ContainerStateTerminated {
	m := w.memory[name]
	if m.Ended != nil {
		return m.Ended
	}
	if old := plan.Newest(sandbox, name); old != nil && old.State == runtime.Exited && !m.Fresh {
		return w.terminated(name, old)
	}
	return nil
}

// translate makes the container's spec from the pod's.
func (w *worker) translate(ctx context.Context, pod *v1.Pod, c *v1.Container, image runtime.Image, mounted map[string]string, attempt int) (runtime.ContainerSpec, error) {
	objects, info := w.a.objects.forPod(ctx, pod.UID), w.info()
	info.EnvFile = func(ref *v1.FileKeySelector) (string, error) { return w.a.volumes.EnvFile(pod, ref) }
	env, err := spec.Env(pod, c, info, objects)
	if err != nil {
		return runtime.ContainerSpec{}, err
	}
	mounts, err := w.a.volumes.Mounts(pod, c, volumes.For{Attempt: attempt, Env: env, Users: w.namespace(pod), Images: mounted})
	if err != nil {
		return runtime.ContainerSpec{}, err
	}
	target, err := w.target(pod, c)
	if err != nil {
		return runtime.ContainerSpec{}, err
	}
	w.mu.Lock()
	given := w.devices[c.Name]
	w.mu.Unlock()
	return spec.Container(pod, c, spec.Input{
		Devices:     given,
		ProcessesOf: target, Attempt: attempt, Info: info, Image: image, Mounts: mounts,
		MemoryCapacity: w.a.node.memory(), SeccompDir: "/var/lib/kubelet/seccomp", Host: w.a.cfg.Host,
	}, objects)
}

// namespace is the user namespace of the pod's sandbox; empty: it is the machine's.
func (w *worker) namespace(pod *v1.Pod) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !spec.OwnUsers(pod) || w.sandbox == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/user", w.sandbox.PID)
}

// target is the id of the container whose processes an ephemeral one shall see;
// none if it sees all of the pod's anyway.
func (w *worker) target(pod *v1.Pod, c *v1.Container) (string, error) {
	e := spec.Ephemeral(pod, c.Name)
	if e == nil || e.TargetContainerName == "" || pod.Spec.HostPID || pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		return "", nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	actual := plan.Newest(w.sandbox, e.TargetContainerName)
	if actual == nil || actual.State != runtime.Running {
		return "", fmt.Errorf("target container %s is not running", e.TargetContainerName)
	}
	return actual.ID, nil
}

// removeLeftover removes a container that was created and never started. ran: it was.
func (w *worker) removeLeftover(ctx context.Context, sandboxID, name string) (ran bool, err error) {
	s, err := w.a.cfg.Runtime.Inspect(ctx, sandboxID)
	if err != nil {
		return false, err
	}
	for _, c := range s.Containers {
		if c.Name != name {
			continue
		}
		if c.State != runtime.Created || !c.Started.IsZero() {
			return true, nil
		}
		return false, w.a.cfg.Runtime.RemoveContainer(ctx, c.ID)
	}
	return false, nil
}

// prune keeps the present attempt and the one before it, for `logs --previous`.
func (w *worker) prune(ctx context.Context, sandbox *runtime.Sandbox, name string, attempt int) {
	for _, c := range sandbox.Containers {
		n, a, ok := spec.ContainerIdentity(c)
		if !ok || n != name || a >= attempt-1 || c.State == runtime.Running {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		if err := w.a.cfg.Runtime.RemoveContainer(call, c.ID); err != nil {
			w.a.log.Warn("remove old container", "pod", w.name(), "container", c.Name, "error", err)
		}
		cancel()
		w.mu.Lock()
		w.did(func(s *runtime.Sandbox) {
			s.Containers = slices.DeleteFunc(s.Containers, func(have runtime.Container) bool { return have.ID == c.ID })
		})
		delete(w.messages, c.ID)
		delete(w.users, c.ID)
		delete(w.mine, c.ID)
		delete(w.unhealthy, c.ID)
		w.mu.Unlock()
	}
}
