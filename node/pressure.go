package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Machine is what pods run on, as far as it can run out of something. eviction.Machine
// implements it.
type Machine interface {
	// Observe reads what is left, of disks on the file systems of two directories; an empty
	// one is not looked at. It is cheap, and returns what it could read beside an error.
	Observe(nodeFS, imageFS string) (eviction.Observations, error)
	// Alarm calls wake when memory gets short, until ctx ends. An error says that it cannot.
	Alarm(ctx context.Context, wake func()) error
}

const (
	// look is how often the machine is observed where nothing calls sooner: kubelet's ten seconds.
	lookAtMachine = 10 * time.Second
	// An evicted pod has that long to be gone before the machine is looked at again, as in kubelet.
	podCleanup, podCleanupPoll = 30 * time.Second, time.Second
	// hardGrace is what a pod has to end that a hard threshold, or a limit of its own, evicts.
	hardGrace = time.Second
)

// pressure keeps the machine from running out of memory, disk or process ids: it evicts
// pods and says in the Node that it has to.
type pressure struct {
	a          *Agent
	thresholds []eviction.Threshold
	wake       chan struct{}
	// Of the goroutine of run alone.
	state             eviction.State
	starved, helpless map[v1.ResourceName]bool // what an event was sent about since pressure began

	mu         sync.Mutex
	conditions []v1.NodeConditionType
	failed     string // what could not be observed, told once
}

func newPressure(a *Agent, thresholds []eviction.Threshold) *pressure {
	return &pressure{a: a, thresholds: thresholds, wake: make(chan struct{}, 1), starved: map[v1.ResourceName]bool{}, helpless: map[v1.ResourceName]bool{}}
}

// Conditions that the Node has.
func (p *pressure) Conditions() []v1.NodeConditionType {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conditions
}

func (p *pressure) run(ctx context.Context) {
	if len(p.thresholds) == 0 {
		return
	}
	if slices.ContainsFunc(p.thresholds, func(t eviction.Threshold) bool { return t.Signal == eviction.MemoryAvailable }) {
		p.a.spawn(func() {
			if err := p.a.cfg.Resources.Machine.Alarm(ctx, p.called); err != nil && ctx.Err() == nil {
				p.a.log.Info("memory is looked at every 10 s only", "reason", err)
			}
		})
	}
	ticker := time.NewTicker(lookAtMachine)
	defer ticker.Stop()
	for {
		for pod := p.relieve(ctx); pod != nil && ctx.Err() == nil; pod = p.relieve(ctx) {
			p.await(ctx, pod)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-p.wake:
		}
	}
}

func (p *pressure) called() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// await returns when nothing of an evicted pod is left, or after a while.
func (p *pressure) await(ctx context.Context, w *worker) {
	for deadline := time.Now().Add(podCleanup); !w.discarded() && ctx.Err() == nil; {
		if time.Now().After(deadline) {
			p.a.log.Warn("an evicted pod takes long to go", "pod", w.name())
			return
		}
		wait(ctx, podCleanupPoll)
	}
}

// relieve looks at the machine, and evicts one pod if it has to; that one is returned.
func (p *pressure) relieve(ctx context.Context) *worker {
	seen := p.observe()
	verdict := p.state.Observe(p.thresholds, seen, p.a.cfg.Resources.Eviction.Transition, time.Now())
	p.mu.Lock()
	changed := !slices.Equal(p.conditions, verdict.Conditions)
	p.conditions = verdict.Conditions
	p.mu.Unlock()
	if changed {
		p.a.log.Warn("conditions of the machine changed", "pressure", verdict.Conditions)
		p.a.node.kick()
	}
	if len(verdict.Starved) == 0 {
		clear(p.starved)
		clear(p.helpless)
		return nil
	}
	if !p.a.isListed() {
		return nil // nothing is known of what runs
	}
	first := verdict.Starved[0]
	if short := first.Resource(); !p.starved[short] {
		p.starved[short] = true
		p.a.events.Eventf(p.a.nodeRef(), v1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim %s", short)
	}
	if first.OnDisk() {
		if _, err := p.a.reclaim(ctx); err != nil && ctx.Err() == nil {
			p.a.log.Warn("reclaim disk", "error", err)
		}
		if seen = p.observe(); len(eviction.Met(p.thresholds, seen, true)) == 0 {
			return nil
		}
	}
	return p.evict(ctx, first, verdict.Starved, seen)
}

// evict the first pod that can be, of those that have to go for a threshold.
func (p *pressure) evict(ctx context.Context, t eviction.Threshold, starved []eviction.Threshold, seen eviction.Observations) *worker {
	workers, used := map[types.UID]*worker{}, map[types.UID]eviction.Usage{}
	var pods []*v1.Pod
	hung := false
	for _, w := range p.a.allWorkers() {
		pod, active := w.active()
		if !active {
			continue
		}
		workers[pod.UID], pods = w, append(pods, pod)
		if hung {
			continue // the next would take as long
		}
		u, err := w.usage(ctx, t.OnDisk())
		if ctx.Err() != nil {
			return nil
		}
		hung = errors.Is(err, context.DeadlineExceeded)
		if err != nil && !errors.Is(err, runtime.ErrNotFound) {
			p.a.log.Warn("read usage of pod", "pod", w.name(), "error", err)
		}
		if err == nil {
			used[pod.UID] = u
		}
	}
	eviction.Rank(t, pods, p.oneDisk(), func(pod *v1.Pod) (eviction.Usage, bool) { u, ok := used[pod.UID]; return u, ok })
	for _, pod := range pods {
		if eviction.Critical(pod) {
			continue
		}
		var u *eviction.Usage
		if have, ok := used[pod.UID]; ok {
			u = &have
		}
		message, notes := eviction.Message(t, starved, seen, pod, u)
		grace := hardGrace
		if t.Grace > 0 {
			grace = min(podGrace(pod), p.a.cfg.Resources.Eviction.MaxPodGrace)
		}
		condition := v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: message}
		if w := workers[pod.UID]; w.evict(message, grace, &condition, notes) {
			p.a.log.Warn("pod is evicted", "pod", w.name(), "reason", message)
			return w
		}
	}
	if short := t.Resource(); !p.helpless[short] {
		p.helpless[short] = true
		p.a.log.Warn("no pod can be evicted", "short", short)
		p.a.events.Eventf(p.a.nodeRef(), v1.EventTypeWarning, "EvictionNotPossible",
			"The peer is low on %s and has no pod that may be evicted: %s", short, relief(short))
	}
	return nil
}

// relief is what a person can do about it.
func relief(short v1.ResourceName) string {
	switch short {
	case v1.ResourceMemory:
		return "see with `ps aux --sort=-rss | head` what beside pods uses it, end that, or add memory"
	case v1.ResourceEphemeralStorage:
		return "see with `df -h`, `df -i` and `du -xh --max-depth=2 /` what beside pods fills the disk, and remove it"
	}
	return "see with `ps -eLf` what beside pods has so many processes and threads, and end it, or raise the sysctl kernel.pid_max"
}

func (p *pressure) observe() eviction.Observations {
	seen, err := p.a.cfg.Resources.Machine.Observe(p.a.cfg.Dir, p.a.node.store())
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	news := text != p.failed
	p.failed = text
	p.mu.Unlock()
	if news && err != nil {
		p.a.log.Warn("look at the machine", "error", err)
	}
	return seen
}

// oneDisk: volumes and containers are on the same file system.
func (p *pressure) oneDisk() bool {
	device := func(dir string) (uint64, error) {
		info, err := os.Stat(dir)
		if err != nil {
			return 0, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, fmt.Errorf("stat %s: %w", dir, os.ErrInvalid)
		}
		return uint64(st.Dev), nil
	}
	nodeFS, err1 := device(p.a.cfg.Dir)
	imageFS, err2 := device(p.a.node.store())
	return err1 != nil || err2 != nil || nodeFS == imageFS
}

// active is the pod if it runs, or is about to, and has not been told to end.
func (w *worker) active() (*v1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.sandbox != nil && w.halt.Since.IsZero() && !w.closed
}

// evict ends the pod for good: it fails, and nothing of it is kept but the object. False:
// it is about to end anyway.
func (w *worker) evict(message string, grace time.Duration, condition *v1.PodCondition, notes map[string]string) bool {
	w.mu.Lock()
	if !w.halt.Since.IsZero() || w.closed {
		w.mu.Unlock()
		return false
	}
	pod := w.pod
	if condition != nil {
		condition.LastTransitionTime = metav1.Now()
	}
	w.giveUp(evicted, message, grace, condition)
	w.mu.Unlock()
	w.a.events.AnnotatedEventf(pod, notes, v1.EventTypeWarning, evicted, "%s", message)
	w.kick()
	return true
}

// The reasons are kubelet's.
const (
	evicted     = "Evicted"
	unexpected  = "UnexpectedAdmissionError"
	outOfPrefix = "OutOf" // and a resource
)

// giveUp lets the pod end as failed and leave nothing behind. Called with mu.
func (w *worker) giveUp(reason, message string, grace time.Duration, condition *v1.PodCondition) {
	w.failed, w.message, w.disruption = reason, message, condition
	w.halt.Since, w.halt.Grace, w.halt.Discard = time.Now(), grace, true
}

// givenUp says whether that is the reason of a pod that was evicted or rejected.
func givenUp(reason string) bool {
	return reason == evicted || reason == preempting || reason == unexpected || strings.HasPrefix(reason, outOfPrefix)
}

// discarded: nothing of the pod is left on this machine.
func (w *worker) discarded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.torn == 2 || w.closed
}
