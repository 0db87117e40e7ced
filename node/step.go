package node

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/status"
	"github.com/rundigitalplatform/rookery/runtime"
)

// retryEngine is when an engine that did not answer is asked again; its events, or
// its coming back, usually are sooner.
const retryEngine = 5 * time.Second

// step looks, decides, begins what is to be done and reports. It waits for nothing
// but the look.
func (w *worker) step() {
	if !w.look() {
		w.mu.Lock()
		// Each question to one that hangs leaves it with a thread that waits.
		w.wakeAt(time.Now().Add(max(w.lateWait, retryEngine)))
		w.mu.Unlock()
		return
	}
	w.readMessages()
	readAgain := w.readUsers()
	w.mu.Lock()
	if w.closed || !w.known || w.dirty {
		// Not known: the first list of the engine kicks again. Dirty: news came meanwhile.
		again := w.known && !w.closed
		w.again = w.again || again
		w.mu.Unlock()
		return
	}
	now := time.Now()
	w.beActive(now)
	w.decideHalt(now)
	w.admit()
	w.syncProbes()
	w.book()
	in := w.input(now)
	plan.Observe(in, w.terminated)
	var result plan.Result
	switch {
	case w.roomless && w.halt.Since.IsZero():
		result.Wake = now.Add(retryAdmission)
	case !w.refuse():
		result = plan.Next(in)
	}
	if result.Finished && w.halt.Since.IsZero() {
		w.halt = plan.Halt{Since: now, Grace: podGrace(w.pod)}
		w.again = true
	}
	for _, action := range result.Actions {
		w.act(action)
	}
	result.Wake = sooner(result.Wake, w.boundSandbox(now))
	if w.room.reason == v1.PodReasonDeferred {
		result.Wake = sooner(result.Wake, now.Add(resizeAgain))
	}
	if w.halt.Since.IsZero() {
		result.Wake = sooner(result.Wake, w.deadline())
	}
	result.Wake = sooner(result.Wake, w.refreshFiles(now))
	if readAgain {
		result.Wake = sooner(result.Wake, now.Add(retryEngine))
	}
	w.wakeAt(result.Wake)
	st := w.report(now, result.Done)
	if result.Done && !w.halt.Resumes {
		w.a.ledger.release(w.uid)
	}
	pod, gone := w.pod, w.gone
	remove := result.Done && w.halt.Remove
	w.mu.Unlock()

	saved := w.save()
	w.mu.Lock()
	w.over = result.Done && saved
	if result.Done && !saved {
		w.wakeAt(now.Add(retryEngine)) // to save it again
	}
	w.mu.Unlock()
	switch {
	case remove && gone:
		w.a.drop(w)
	default:
		w.a.writer.submit(pod, st, remove)
	}
}

// sooner of two times; a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// input is the snapshot that plan decides on. Called with mu.
func (w *worker) input(now time.Time) plan.Input {
	in := plan.Input{
		Pod: w.pod, Now: now, Halt: w.halt, Sandbox: w.sandbox,
		VolumesReady: w.volumes, Attached: w.attached, NotBefore: w.notBefore,
		Memory: w.memory, Health: w.health(), Busy: map[string]plan.Task{},
	}
	in.NoRoom = w.room.reason != ""
	in.TornDown = w.torn == 2 || w.torn == 1 && !w.halt.Remove && !w.halt.Discard
	for name, t := range w.busy {
		in.Busy[name] = t.Task
	}
	return in
}

// decideHalt notes that the pod has to end. What was decided once is not taken
// back; only a delete may follow, and make it harder. Called with mu.
func (w *worker) decideHalt(now time.Time) {
	pod := w.pod
	switch {
	case w.gone || pod.DeletionTimestamp != nil:
		grace := podGrace(pod)
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			grace = time.Duration(*g) * time.Second
		} else if w.gone {
			grace = 0 // removed from the API without a word: by force
		}
		if !w.halt.Remove {
			w.halt.Since = now
			w.halt.Grace = grace
		}
		w.halt.Remove, w.halt.Resumes = true, false
		w.halt.Grace = min(w.halt.Grace, grace)
	case !w.halt.Since.IsZero():
	case pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded:
		w.halt = plan.Halt{Since: now, Grace: podGrace(pod), Discard: pod.Status.Reason == evicted || pod.Status.Reason == preempting}
	case givenUp(pod.Status.Reason): // by a daemon that did not live to see the end of it
		w.giveUp(pod.Status.Reason, pod.Status.Message, hardGrace, nil)
	case w.sandbox == nil && w.a.node.isStopping():
		w.halt = plan.Halt{Since: now, Resumes: true}
	default:
		if deadline := w.deadline(); !deadline.IsZero() && !now.Before(deadline) {
			w.failed, w.message = "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
			w.halt = plan.Halt{Since: now, Grace: podGrace(pod)}
			w.a.events.Event(pod, v1.EventTypeNormal, "DeadlineExceeded", w.message)
		}
	}
}

// refuse holds back a pod that asks for what this peer cannot give, and says so.
// Called with mu.
func (w *worker) refuse() bool {
	if !w.halt.Since.IsZero() || w.sandbox != nil {
		return false
	}
	reasons := spec.Refused(w.pod)
	for _, reason := range reasons {
		w.tellOnce("refused "+reason, v1.EventTypeWarning, "Unsupported", "%s", reason)
	}
	for _, reason := range spec.Ignored(w.pod, w.a.cfg.Host) {
		w.tellOnce("ignored "+reason, v1.EventTypeWarning, "Unsupported", "%s", reason)
	}
	if len(reasons) == 0 {
		return false
	}
	for _, m := range w.memory {
		m.Waiting = &v1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: reasons[0]}
	}
	return true
}

// tellOnce records an event the first time in this daemon's life. Called with mu.
func (w *worker) tellOnce(key, kind, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if w.told[key] == message {
		return
	}
	w.told[key] = message
	w.a.events.Event(w.pod, kind, reason, message)
}

// terminated translates a container that has exited. Called with mu.
func (w *worker) terminated(name string, c *runtime.Container) *v1.ContainerStateTerminated {
	end := status.Terminated(c, w.messages[c.ID])
	if _, attempt, ok := spec.ContainerIdentity(*c); ok && w.memory[name] != nil && w.memory[name].Attempt == attempt {
		return w.memory[name].Outcome(end)
	}
	return end
}

func podGrace(pod *v1.Pod) time.Duration {
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return v1.DefaultTerminationGracePeriodSeconds * time.Second
}
