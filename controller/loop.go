package controller

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	podutil "k8s.io/kubernetes/pkg/controller"
)

// ours are the controllers that are Rookery's own.
func ours() []controller {
	return []controller{
		{name: "node-health", user: "node-controller", run: runHealth},
		{name: "pod-garbage", user: "pod-garbage-collector", run: runPodGarbage},
		{name: "storage-migration", user: "storage-version-migrator-controller", run: runMigration, rare: migrationsOf},
		{name: "api-endpoints", user: "endpointslice-controller", run: runAPIEndpoints},
		{name: "load-balancer", user: "service-controller", run: runLoadBalancer},
	}
}

const (
	// tick is how often a level-triggered loop looks again without being woken, for what it
	// waits for is a time, or news that was missed.
	tick = 5 * time.Second
	// rareTick is tick where no time is waited for and each change wakes: it repairs what
	// somebody else has changed unseen.
	rareTick = 30 * time.Second
	// retry is how soon it looks again after an error.
	retry = time.Second
)

// waker is told that something changed; what nobody took yet is one.
type waker chan struct{}

func newWaker() waker { return make(waker, 1) }

func (w waker) wake() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// on wakes w for each change of the informer's objects.
func (w waker) on(informer cache.SharedIndexInformer) error {
	if _, err := informer.AddEventHandler(w.handler()); err != nil {
		return fmt.Errorf("watch for changes: %w", err)
	}
	return nil
}

func (w waker) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { w.wake() }, UpdateFunc: func(any, any) { w.wake() }, DeleteFunc: func(any) { w.wake() },
	}
}

// loop calls reconcile at once, when woken by either channel, and at the latest so long after
// the last time, until ctx ends. An error is logged and tried again.
func (e *env) loop(ctx context.Context, w waker, members <-chan struct{}, latest time.Duration, reconcile func(ctx context.Context) error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w:
		case <-members:
		case <-timer.C:
		}
		next := latest
		if err := reconcile(ctx); err != nil && ctx.Err() == nil {
			e.logger.Warn("reconcile failed, trying again", "error", err)
			next = retry
		}
		timer.Reset(next)
	}
}

// synced starts the informers and waits for them.
func (e *env) synced(ctx context.Context, informers ...cache.SharedIndexInformer) error {
	e.Start(ctx.Done())
	for _, informer := range informers {
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			return fmt.Errorf("wait for informers: %w", context.Cause(ctx))
		}
	}
	return nil
}

// indexPodsByNode makes podsOn work.
func indexPodsByNode(pods cache.SharedIndexInformer) error {
	if err := podutil.AddPodNodeNameIndexer(pods); err != nil {
		return fmt.Errorf("index pods by node: %w", err)
	}
	return nil
}

// podsOn are the pods bound to a node.
func podsOn(pods cache.Indexer, node string) ([]*corev1.Pod, error) {
	objs, err := pods.ByIndex(podutil.PodNodeNameKeyIndex, node)
	if err != nil {
		return nil, fmt.Errorf("list pods of node %s: %w", node, err)
	}
	out := make([]*corev1.Pod, 0, len(objs))
	for _, obj := range objs {
		if pod, ok := obj.(*corev1.Pod); ok {
			out = append(out, pod)
		}
	}
	return out, nil
}
