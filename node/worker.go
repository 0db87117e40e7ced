package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/plan"
	"github.com/rundigitalplatform/rookery/node/probe"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// worker is one pod. Its step runs in one goroutine while there is something to do,
// and in none when there is not. What takes long runs in tasks, one per container
// and one for the pod as a whole; the end of a task leads to the next step.
type worker struct {
	a   *Agent
	uid types.UID
	ctx context.Context
	end context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running bool // a goroutine steps
	again   bool // and shall step once more
	timer   *time.Timer
	renew   *time.Timer // of tokens

	pod  *v1.Pod // newest from the API
	gone bool    // it is not in the API any more

	sandbox     *runtime.Sandbox
	known       bool          // the engine was asked for the sandbox since the daemon began
	alone       bool          // it is asked for this one only, if it is not known
	late        error         // how the engine took too long when it was last asked about the sandbox; nil: it did not
	lateWait    time.Duration // until it is asked again
	dirty       bool          // sandbox may be out of date
	dirtySeq    int           // counts changes, to see one that came while the engine was asked
	busy        map[string]*task
	memory      map[string]*plan.Memory
	activeSince time.Time          // since when the pod is, by a clock that is not set
	wasActive   *active            // the same for the next daemon
	attempt     int                // of the sandbox
	bounds      *runtime.Resources // of the sandbox as it runs; nil: not known
	volumes     bool
	stale       bool      // the contents of volumes may be out of date
	refreshAt   time.Time // not before, after a failure
	failing     int       // refreshes in a row that failed
	attached    bool
	podIPs      []string
	notBefore   time.Time // of the next action for the whole pod
	failures    int       // of such actions in a row
	torn        int       // 1: stopped, 2: removed
	halt        plan.Halt
	over        bool   // it has ended, and what the next daemon has to know is on disk
	failed      string // reason why the pod as a whole was given up
	message     string
	disruption  *v1.PodCondition    // that says so, if it was evicted
	booked      bool                // in the ledger, or rejected
	room        room                // why the ledger does not have what the pod asks for now
	roomless    bool                // neither yet: others are ended for its sake
	admitted    bool                // it may run here, for as long as it lives
	devices     map[string][]string // that it was given, by container
	probes      map[string]*watched
	mine        map[string]bool              // container ids that this daemon started
	unhealthy   map[string]string            // container id → why it must be restarted
	messages    map[string]string            // container id → termination message
	users       map[string]*v1.ContainerUser // by container id; nil: it cannot be told
	images      map[string]*runtime.Image
	told        map[string]string // last message by kind of event, not to repeat it
	reported    *v1.PodStatus
	saved       []byte
}

type task struct {
	plan.Task
	id     string // of the container that a Stop ends
	cancel context.CancelFunc
}

type watched struct {
	id  string
	set *probe.Set
}

func newWorker(a *Agent, ctx context.Context, pod *v1.Pod) *worker {
	ctx, end := context.WithCancel(ctx)
	w := &worker{
		a: a, uid: pod.UID, ctx: ctx, end: end, pod: pod,
		// A pod that comes while the agent already knows what runs has no sandbox yet.
		known:     a.listed,
		alone:     a.apart,
		busy:      map[string]*task{},
		memory:    map[string]*plan.Memory{},
		probes:    map[string]*watched{},
		mine:      map[string]bool{},
		unhealthy: map[string]string{},
		messages:  map[string]string{},
		users:     map[string]*v1.ContainerUser{},
		images:    map[string]*runtime.Image{},
		told:      map[string]string{},
	}
	w.load()
	for _, c := range spec.Containers(pod) {
		if w.memory[c.Name] == nil {
			w.memory[c.Name] = remembered(pod, c.Name)
		}
		if m := w.memory[c.Name]; m.Resources == nil && m.Attempt >= 0 { // of a daemon that did not remember them
			m.Resources = new(spec.Resources(pod, c))
		}
	}
	for _, ip := range pod.Status.PodIPs {
		w.podIPs = append(w.podIPs, ip.IP)
	}
	return w
}

// remembered starts a memory from what the API last heard, for want of a better one.
func remembered(pod *v1.Pod, name string) *plan.Memory {
	m := plan.NewMemory()
	if s := oldStatus(pod, name); s != nil && (s.RestartCount > 0 || s.ContainerID != "") {
		m.Attempt = int(s.RestartCount)
		m.Last = s.LastTerminationState.Terminated
		if end := s.State.Terminated; end != nil {
			m.Ended, m.Fresh = end, false
		}
	}
	return m
}

func oldStatus(pod *v1.Pod, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// spec is the pod as last seen; it is never modified.
func (w *worker) spec() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

func (w *worker) update(pod *v1.Pod) {
	w.mu.Lock()
	w.stale = w.stale || tellsOther(w.pod, pod)
	w.pod = pod
	for i := range pod.Spec.EphemeralContainers { // the only ones that come later
		if name := pod.Spec.EphemeralContainers[i].Name; w.memory[name] == nil {
			w.memory[name] = plan.NewMemory()
		}
	}
	w.mu.Unlock()
	w.kick()
}

func (w *worker) podGone() {
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.kick()
}

// touch says that the engine has news of the pod. Most are of what a task of ours
// does or did: that needs no look, for asking costs the engine as much as doing.
func (w *worker) touch(e runtime.Event) {
	w.mu.Lock()
	own, dirty := false, true
	switch e.Type {
	case runtime.SandboxStarted:
		own = w.busy[""] != nil || w.sandbox != nil && w.sandbox.Running
		dirty = !own
	case runtime.ContainerStarted:
		own = w.mine[e.Container] && w.stateOf(e.Container) == runtime.Running || w.starting()
		dirty = !own
	case runtime.ContainerDied, runtime.ContainerRemoved, runtime.SandboxEnded:
		own = w.ending(e.Container) // its task will say so when it is through
	}
	if dirty {
		w.markDirty()
	}
	w.mu.Unlock()
	if !own {
		w.kick()
	}
}

// stateOf is the state a container is known to be in. Called with mu.
func (w *worker) stateOf(id string) runtime.State {
	if w.sandbox != nil {
		for _, c := range w.sandbox.Containers {
			if c.ID == id {
				return c.State
			}
		}
	}
	return runtime.Unknown
}

// starting: a container is about to be started by us. Called with mu.
func (w *worker) starting() bool {
	for _, t := range w.busy {
		if t.Kind == plan.Start {
			return true
		}
	}
	return false
}

// ending: a task of ours ends that container, or the pod as a whole. Called with mu.
func (w *worker) ending(id string) bool {
	if t := w.busy[""]; t != nil && (t.Kind == plan.Teardown || t.Kind == plan.RemoveSandbox) {
		return true
	}
	for _, t := range w.busy {
		if t.Kind == plan.Stop && t.id == id {
			return true
		}
	}
	return false
}

// did notes what a task of ours did to the sandbox. The engine is not asked: what
// happens to it beside us comes as an event, and one that is lost by the next resync.
// Called with mu.
func (w *worker) did(change func(s *runtime.Sandbox)) {
	if w.sandbox == nil {
		return
	}
	s := *w.sandbox
	s.Containers = slices.Clone(s.Containers)
	change(&s)
	w.sandbox = &s
	w.dirtySeq++ // a look that is under way may be older than this
}

// didStart notes that a container runs, unless it was seen to have ended since. Called with mu.
func (w *worker) didStart(id string, at time.Time) {
	w.did(func(s *runtime.Sandbox) {
		for i := range s.Containers {
			if c := &s.Containers[i]; c.ID == id && c.State == runtime.Created {
				c.State, c.Started = runtime.Running, at
			}
		}
	})
}

func (w *worker) markDirty() {
	w.dirty = true
	w.dirtySeq++
}

// listed takes in what a list of sandboxes said of this pod.
func (w *worker) listed(s *runtime.Sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.known {
		w.known = true
		w.sandbox = s
		if s != nil {
			id, _ := spec.ParseSandboxName(s.Name)
			w.attempt = id.Attempt
		}
		return
	}
	// A list is not in order with the events; it can only be a reason to look.
	if !sameSandbox(w.sandbox, s) && len(w.busy) == 0 {
		w.markDirty()
	}
}

// lookAlone has the next step ask the engine for this pod's sandbox, unless a task does; only
// if it is not known yet, or again.
func (w *worker) lookAlone(again bool) {
	w.mu.Lock()
	w.alone = true
	if again && w.known && len(w.busy) == 0 {
		w.markDirty()
	}
	kick := again || !w.known && w.late == nil // which wakes by itself
	w.mu.Unlock()
	if kick {
		w.kick()
	} else {
		w.kickIfNew()
	}
}

// find asks the engine for the sandbox that a former daemon left, if any. False: it did
// not answer.
func (w *worker) find() bool {
	ctx, cancel := context.WithTimeout(w.ctx, callTimeout)
	defer cancel()
	list, err := w.a.cfg.Runtime.List(ctx, map[string]string{spec.LabelPodUID: string(w.uid)})
	w.tellLate(err)
	if err != nil {
		return false
	}
	newest, _ := newestOf(list)
	w.listed(newest[w.uid])
	return true
}

// tellLate notes and tells that the engine did not say how the sandbox is, or that it did.
func (w *worker) tellLate(err error) {
	if w.ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	w.noteLate(err)
	w.mu.Unlock()
	if err != nil && !errors.Is(err, runtime.ErrNotFound) && !errors.Is(err, runtime.ErrUnavailable) { // that is told once, for all pods
		w.a.log.Warn("inspect sandbox", "pod", w.name(), "error", err)
		w.event(v1.EventTypeWarning, "FailedSync", "error determining status: %v", err)
	}
}

// noteLate is called with mu.
func (w *worker) noteLate(err error) {
	if w.late = nil; !errors.Is(err, context.DeadlineExceeded) {
		w.lateWait = 0
	} else {
		w.late, w.lateWait = err, min(max(2*w.lateWait, retryEngine), askAgain)
		w.a.forgetLate() // it is this pod that holds up a list of all
	}
}

// kickIfNew kicks if there is something to do or to say, such as another address of this machine.
func (w *worker) kickIfNew() {
	hostIPs := w.a.cfg.hostIPs()
	w.mu.Lock()
	need := w.dirty && w.late == nil || w.reported == nil || !slices.EqualFunc(w.reported.HostIPs, hostIPs, func(told v1.HostIP, ip string) bool { return told.IP == ip })
	w.mu.Unlock()
	if need {
		w.kick()
	}
}

func sameSandbox(a, b *runtime.Sandbox) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.ID != b.ID || a.Running != b.Running || len(a.Containers) != len(b.Containers) {
		return false
	}
	states := map[string]runtime.State{}
	for _, c := range a.Containers {
		states[c.ID] = c.State
	}
	for _, c := range b.Containers {
		if states[c.ID] != c.State {
			return false
		}
	}
	return true
}

// kick makes the pod step, now or once more after the step that is under way.
func (w *worker) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if w.running {
		w.again = true
		return
	}
	w.running = w.a.spawn(w.loop)
}

func (w *worker) loop() {
	for {
		w.step()
		w.mu.Lock()
		if !w.again || w.closed {
			w.running = false
			w.mu.Unlock()
			return
		}
		w.again = false
		w.mu.Unlock()
	}
}

// wakeAt kicks at that time; a sooner one that was asked for before is replaced,
// for every step says anew when it wants to be woken. Called with mu.
func (w *worker) wakeAt(at time.Time) {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if !at.IsZero() && !w.closed {
		w.timer = time.AfterFunc(max(time.Until(at), 0), w.kick)
	}
}

func (w *worker) close() {
	w.mu.Lock()
	w.closed = true
	w.wakeAt(time.Time{})
	if w.renew != nil {
		w.renew.Stop()
	}
	probes := w.probes
	w.probes = map[string]*watched{}
	w.mu.Unlock()
	w.end()
	for _, p := range probes {
		p.set.Cancel()
	}
}

// launch runs f as the task of a container, or of the pod under "". f says whether
// the sandbox is known as it is now; otherwise the engine is asked. Called with mu.
func (w *worker) launch(key string, t task, f func(ctx context.Context) (known bool)) {
	ctx, cancel := context.WithCancel(w.ctx)
	t.Since, t.cancel = time.Now(), cancel
	w.busy[key] = &t
	started := w.a.spawn(func() {
		defer cancel()
		known := f(ctx)
		w.mu.Lock()
		delete(w.busy, key)
		if !known {
			w.markDirty()
		}
		w.mu.Unlock()
		w.kick()
	})
	if !started {
		cancel()
	}
}

// look asks the engine for the sandbox until what it said is not older than the
// last news of it. False: the engine did not answer; try later.
func (w *worker) look() bool {
	w.mu.Lock()
	find := w.alone && !w.known
	w.mu.Unlock()
	if find && !w.find() {
		return false
	}
	for {
		w.mu.Lock()
		// What is seen of a sandbox that is being removed are containers that seem lost.
		removing := w.busy[""] != nil && w.busy[""].Kind == plan.RemoveSandbox
		if !w.dirty || w.sandbox == nil || removing {
			w.dirty, w.late = false, nil
			w.mu.Unlock()
			return true
		}
		id, seq := w.sandbox.ID, w.dirtySeq
		w.mu.Unlock()

		ctx, cancel := context.WithTimeout(w.ctx, callTimeout)
		s, err := w.a.cfg.Runtime.Inspect(ctx, id)
		cancel()
		w.tellLate(err)
		w.mu.Lock()
		switch {
		case errors.Is(err, runtime.ErrNotFound):
			if w.sandbox != nil && w.sandbox.ID == id {
				w.sandbox, w.attached = nil, false
			}
		case err != nil:
			w.mu.Unlock()
			return false
		case w.sandbox != nil && w.sandbox.ID == id:
			w.sandbox = &s
		}
		if w.dirtySeq == seq {
			w.dirty = false
		}
		w.mu.Unlock()
	}
}

func (w *worker) name() string {
	pod := w.spec()
	return pod.Namespace + "/" + pod.Name
}
