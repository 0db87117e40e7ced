package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
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
	if err := l.fits(pod, have); err != nil {
		return nil, err
	}
	given, err = l.devices.Allocate(pod)
	if err != nil {
		return nil, rejection{unexpected, fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)}
	}
	l.pods[pod.UID] = pod
	return given, nil
}

// fits returns the first that the pod requests and that is not there. Called with mu.
func (l *ledger) fits(pod *v1.Pod, have v1.ResourceList) error {
	used, others := l.sum(pod.UID)
	if most := have[v1.ResourcePods]; others+1 > most.Value() {
		return outOf(v1.ResourcePods, 1, others, most.Value())
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	names := slices.SortedFunc(maps.Keys(requests), func(a, b v1.ResourceName) int { return cmp.Or(order(a)-order(b), cmp.Compare(a, b)) })
	for _, name := range names {
		want, all, taken := requests[name], have[name], used[name]
		if _, known := have[name]; !known && name == v1.ResourceEphemeralStorage {
			continue // its size could not be told
		}
		if want.IsZero() {
			continue
		}
		sum := want.DeepCopy()
		sum.Add(taken)
		if sum.Cmp(all) <= 0 {
			continue
		}
		if name == v1.ResourceCPU {
			return outOf(name, want.MilliValue(), taken.MilliValue(), all.MilliValue())
		}
		return outOf(name, want.Value(), taken.Value(), all.Value())
	}
	return nil
}

// used is what all pods but one have.
func (l *ledger) used(but types.UID) v1.ResourceList {
	l.mu.Lock()
	defer l.mu.Unlock()
	used, _ := l.sum(but)
	return used
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

// order is that in which kubelet looks at resources.
func order(name v1.ResourceName) int {
	return slices.Index([]v1.ResourceName{"", v1.ResourceEphemeralStorage, v1.ResourceMemory, v1.ResourceCPU}, name) * -1
}

func outOf(name v1.ResourceName, requested, used, capacity int64) error {
	return rejection{outOfPrefix + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity)}
}

// keep notes a pod that runs here already, with the devices that it has.
func (l *ledger) keep(pod *v1.Pod, given map[string][]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods[pod.UID] = pod
	l.devices.Restore(pod.UID, given)
}

// update takes in a newer spec of a pod that was admitted, and that there is room for.
func (l *ledger) update(pod *v1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[pod.UID] != nil {
		l.pods[pod.UID] = pod
	}
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
