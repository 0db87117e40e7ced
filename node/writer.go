package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/util/workqueue"
)

// writer brings the pods' status to the API: only the newest of each pod, only what
// changed, again and again until it is there. On an island it keeps them until the
// majority is back.
type writer struct {
	client kubernetes.Interface
	pods   corelisters.PodLister
	log    *slog.Logger
	queue  workqueue.TypedRateLimitingInterface[types.UID]

	mu      sync.Mutex
	wanted  map[types.UID]*report
	written map[types.UID]*v1.Pod // as the API answered the last write
}

type report struct {
	namespace, name string
	uid             types.UID
	status          v1.PodStatus
	remove          bool // the pod is gone from this peer: delete the object after its last status
}

// Parallel writes, and the pause between tries of one that fails.
const (
	writers       = 4
	firstRewrite  = 100 * time.Millisecond
	lastRewrite   = 10 * time.Second
	rewriteExpiry = 30 * time.Second // a call that hangs is one that failed
)

func newWriter(client kubernetes.Interface, pods corelisters.PodLister, log *slog.Logger) *writer {
	return &writer{
		client: client, pods: pods, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](firstRewrite, lastRewrite)),
		wanted:  map[types.UID]*report{},
		written: map[types.UID]*v1.Pod{},
	}
}

// hold is for how long news that nobody waits for may gather: a pod that comes up
// changes its status with every container, and each write goes through the log.
const hold = time.Second

// submit has the status written: at once if it says what others act upon, else with
// what else comes within hold.
func (w *writer) submit(pod *v1.Pod, status v1.PodStatus, remove bool) {
	w.mu.Lock()
	old := pod.Status
	if written := w.written[pod.UID]; written != nil {
		old = written.Status
	}
	w.wanted[pod.UID] = &report{pod.Namespace, pod.Name, pod.UID, status, remove}
	w.mu.Unlock()
	if remove || !comingUp(old, status) {
		w.queue.Add(pod.UID)
	} else {
		w.queue.AddAfter(pod.UID, hold)
	}
}

// comingUp: the pod was not Ready and is not, and nothing in it has ended or failed.
func comingUp(old, now v1.PodStatus) bool {
	for _, s := range []v1.PodStatus{old, now} {
		if podReady(s) || s.Phase == v1.PodSucceeded || s.Phase == v1.PodFailed {
			return false
		}
	}
	for _, list := range [][]v1.ContainerStatus{now.InitContainerStatuses, now.ContainerStatuses} {
		for _, c := range list {
			waits := c.State.Waiting
			if c.State.Terminated != nil || c.RestartCount > 0 ||
				waits != nil && waits.Reason != "ContainerCreating" && waits.Reason != "PodInitializing" {
				return false
			}
		}
	}
	return true
}

func podReady(s v1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodReady && c.Status == v1.ConditionTrue
	})
}

func (w *writer) forget(uid types.UID) {
	w.mu.Lock()
	delete(w.wanted, uid)
	delete(w.written, uid)
	w.mu.Unlock()
	w.queue.Forget(uid)
}

func (w *writer) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for w.next(ctx) {
			}
		})
	}
	wg.Wait()
}

func (w *writer) next(ctx context.Context) bool {
	uid, quit := w.queue.Get()
	if quit {
		return false
	}
	defer w.queue.Done(uid)
	w.mu.Lock()
	r := w.wanted[uid]
	w.mu.Unlock()
	if r == nil {
		return true
	}
	call, cancel := context.WithTimeout(ctx, rewriteExpiry)
	defer cancel()
	err := w.write(call, r)
	if err != nil && ctx.Err() == nil {
		if w.queue.NumRequeues(uid) == 0 {
			w.log.Warn("write pod status", "pod", r.namespace+"/"+r.name, "error", err)
		}
		w.queue.AddRateLimited(uid)
		return true
	}
	w.queue.Forget(uid)
	w.mu.Lock()
	if w.wanted[uid] == r {
		delete(w.wanted, uid)
	}
	w.mu.Unlock()
	return true
}

func (w *writer) write(ctx context.Context, r *report) error {
	base, err := w.base(ctx, r)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if base.UID != r.uid {
		return nil // another pod of that name; ours is gone
	}
	patch, err := statusPatch(r.uid, base.Status, r.status)
	if err != nil {
		return err
	}
	if patch != nil {
		pods := w.client.CoreV1().Pods(r.namespace)
		answer, err := pods.Patch(ctx, r.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err) && r.uid != base.UID:
			return nil
		case apierrors.IsConflict(err):
			w.mu.Lock()
			delete(w.written, r.uid)
			w.mu.Unlock()
			return err
		case err != nil:
			return err
		}
		w.mu.Lock()
		w.written[r.uid] = answer
		w.mu.Unlock()
	}
	if r.remove {
		return w.remove(ctx, r)
	}
	return nil
}

// remove deletes the object for good, as only the peer that ran the pod may.
func (w *writer) remove(ctx context.Context, r *report) error {
	now := int64(0)
	err := w.client.CoreV1().Pods(r.namespace).Delete(ctx, r.name, metav1.DeleteOptions{
		GracePeriodSeconds: &now,
		Preconditions:      metav1.NewUIDPreconditions(string(r.uid)),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// base is the newest state of the object that is known here: the informer's or the
// answer to the last write, whichever is newer; asked for if that cannot be told.
func (w *writer) base(ctx context.Context, r *report) (*v1.Pod, error) {
	cached, err := w.pods.Pods(r.namespace).Get(r.name)
	w.mu.Lock()
	written := w.written[r.uid]
	w.mu.Unlock()
	if err == nil && cached.UID == r.uid {
		if written == nil {
			return cached, nil
		}
		have, err1 := strconv.ParseUint(cached.ResourceVersion, 10, 64)
		sent, err2 := strconv.ParseUint(written.ResourceVersion, 10, 64)
		if err1 == nil && err2 == nil {
			if have >= sent {
				return cached, nil
			}
			return written, nil
		}
	}
	return w.client.CoreV1().Pods(r.namespace).Get(ctx, r.name, metav1.GetOptions{})
}

// statusPatch is what changes old to new, with the UID as a precondition; nil: nothing.
func statusPatch(uid types.UID, old, new v1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(v1.Pod{Status: old})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	after, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: new})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compare status: %w", err)
	}
	if bytes.Equal(patch, fmt.Appendf(nil, `{"metadata":{"uid":%q}}`, uid)) {
		return nil, nil
	}
	return patch, nil
}
