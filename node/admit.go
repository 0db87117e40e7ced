package node

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/spec"
)

// ledger is what of this peer is given away, by pod. The scheduler has made sure that it is
// enough; a pod that was bound by hand, or while two of them did not know of each other, is
// turned away here, as kubelet does. Its methods may be called concurrently.
type ledger struct {
	devices *devices.Table

	mu   sync.Mutex
	pods map[types.UID]*v1.Pod
}

func newLedger(d *devices.Table) *ledger { return &ledger{devices: d, pods: map[types.UID]*v1.Pod{}} }

// rejection is why a pod is not run here, in kubelet's words.
type rejection struct{ reason, message string }

func (r rejection) Error() string { return r.message }

// admit gives the pod what it requests of have, or returns a rejection. given are the
// devices that its containers get.
func (l *ledger) admit(pod *v1.Pod, have v1.ResourceList) (given map[string][]string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if short := l.short(pod, have); len(short) > 0 {
		return nil, short[0].rejection()
	}
	given, err = l.devices.Allocate(pod)
	if err != nil {
		return nil, rejection{unexpected, fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)}
	}
	l.pods[pod.UID] = pod
	return given, nil
}

// shortage is what a pod requests of a resource, and what others have and this peer.
type shortage struct {
	name             v1.ResourceName
	want, used, have resource.Quantity
}

// short is what the pod requests beyond what others leave of have, in the order in which
// kubelet looks at resources. Called with mu.
func (l *ledger) short(pod *v1.Pod, have v1.ResourceList) (short []shortage) {
	used, others := l.sum(pod.UID)
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	requests[v1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	used[v1.ResourcePods] = *resource.NewQuantity(others, resource.DecimalSI)
	for name, want := range requests {
		if _, known := have[name]; !known && name == v1.ResourceEphemeralStorage {
			continue // its size could not be told
		}
		s := shortage{name, want, used[name], have[name]}
		if missing := s.missing(); !want.IsZero() && missing.Sign() > 0 {
			short = append(short, s)
		}
	}
	slices.SortFunc(short, func(a, b shortage) int {
		return cmp.Or(order(a.name)-order(b.name), cmp.Compare(a.name, b.name))
	})
	return short
}

// missing may be more than an int64 has room for, in thousandths; negative: something is left.
func (s shortage) missing() resource.Quantity {
	q := s.want.DeepCopy()
	q.Add(s.used)
	q.Sub(s.have)
	return q
}

// units are its numbers as messages have them.
func (s shortage) units() (want, used, have int64) {
	if s.name == v1.ResourceCPU {
		return s.want.MilliValue(), s.used.MilliValue(), s.have.MilliValue()
	}
	return s.want.Value(), s.used.Value(), s.have.Value()
}

func (s shortage) rejection() rejection {
	want, used, have := s.units()
	return rejection{outOfPrefix + string(s.name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, want, used, have)}
}

// sum is what all pods but one have, and how many they are. What one was refused in a resize
// it does not have. Called with mu.
func (l *ledger) sum(but types.UID) (v1.ResourceList, int64) {
	used, n := v1.ResourceList{}, int64(0)
	for uid, pod := range l.pods {
		if uid == but {
			continue
		}
		n++
		for name, q := range resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	return used, n
}

// order is that in which kubelet looks at resources: the number of pods, CPU, memory,
// storage, then all others.
func order(name v1.ResourceName) int {
	return -slices.Index([]v1.ResourceName{v1.ResourceEphemeralStorage, v1.ResourceMemory, v1.ResourceCPU, v1.ResourcePods}, name)
}

// keep notes a pod that runs here already, with the devices that it has.
func (l *ledger) keep(pod *v1.Pod, given map[string][]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods[pod.UID] = pod
	l.devices.Restore(pod.UID, given)
}

// update takes in a newer spec of a pod that was admitted, and that takes no more for it.
func (l *ledger) update(pod *v1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[pod.UID] != nil {
		l.pods[pod.UID] = pod
	}
}

// resize gives a pod that was admitted what it requests of have now, or keeps what it has
// and says why.
func (l *ledger) resize(pod *v1.Pod, have v1.ResourceList) room {
	l.mu.Lock()
	defer l.mu.Unlock()
	var deferred room
	for _, s := range l.short(pod, have) {
		if s.name != v1.ResourceCPU && s.name != v1.ResourceMemory {
			continue // it is not resized
		}
		if s.want.Cmp(s.have) > 0 {
			want, _, have := s.units()
			return room{v1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", s.name, want, have)}
		}
		if deferred.reason == "" {
			deferred = room{v1.PodReasonDeferred, fmt.Sprintf("Node didn't have enough resource: %s", s.name)}
		}
	}
	if deferred.reason == "" && l.pods[pod.UID] != nil {
		l.pods[pod.UID] = pod
	}
	return deferred
}

// release gives back what a pod had. Idempotent.
func (l *ledger) release(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pods, uid)
	l.devices.Release(uid)
}

// admit looks once in a pod's life whether it may run here; if not it fails. Called with mu.
func (w *worker) admit() {
	if w.booked || !w.halt.Since.IsZero() {
		return
	}
	if !w.admitted && w.begun() {
		w.admitted = true // by a daemon that did not remember it
	}
	w.booked, w.roomless = true, false
	if w.admitted {
		w.a.ledger.keep(w.pod, w.devices)
		return
	}
	given, err := w.a.admit(w.pod)
	var no rejection
	if errors.As(err, &no) && w.a.preempt(w.pod, no) {
		w.booked, w.roomless = false, true
		return
	}
	if errors.As(err, &no) {
		w.a.events.Event(w.pod, v1.EventTypeWarning, no.reason, no.message)
		w.a.log.Warn("pod is rejected", "pod", w.pod.Namespace+"/"+w.pod.Name, "reason", no.reason, "message", no.message)
		w.giveUp(no.reason, "Pod was rejected: "+no.message, 0, nil)
		return
	}
	w.admitted, w.devices = true, given
}

// begun: something of the pod is, or was, here. Called with mu.
func (w *worker) begun() bool {
	if w.sandbox != nil {
		return true
	}
	for _, m := range w.memory {
		if m.Attempt >= 0 {
			return true
		}
	}
	return false
}

func (a *Agent) admit(pod *v1.Pod) (map[string][]string, error) {
	bestEffort := v1qos.GetPodQOS(pod) == v1.PodQOSBestEffort
	if message, refused := eviction.Refuses(a.pressure.Conditions(), pod, bestEffort); refused {
		return nil, rejection{evicted, message}
	}
	if reason, message := spec.Rejected(pod, a.cfg.Host); reason != "" {
		return nil, rejection{reason, message}
	}
	return a.ledger.admit(pod, a.node.allocatable())
}
