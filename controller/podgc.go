package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
)

// maxFinished is how many finished pods are kept to be looked at; upstream's
// 12,500 would fill a small board's memory.
const maxFinished = 500

// runPodGarbage deletes the pods that no agent will: of nodes that are gone, and
// finished ones beyond maxFinished. Upstream's controller for this links the
// kubelet.
func runPodGarbage(ctx context.Context, e *env) error {
	nodes, pods := e.Core().V1().Nodes(), e.Core().V1().Pods()
	w := newWaker()
	// Pods come and go all the time; only a node that goes is urgent.
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { w.wake() }})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	if err := e.synced(ctx, nodes.Informer(), pods.Informer()); err != nil {
		return err
	}
	lister := pods.Lister()
	e.loop(ctx, w, nil, tick, func(ctx context.Context) error {
		all, err := lister.List(labels.Everything())
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		orphans, finished := garbage(all, func(node string) bool {
			_, found, err := nodes.Informer().GetIndexer().GetByKey(node)
			return err == nil && found
		})
		return errors.Join(e.deleteOrphans(ctx, orphans), e.deletePods(ctx, finished, "too many finished pods"))
	})
	return nil
}

// garbage picks the pods of nodes that do not exist, and the oldest of too many finished ones.
func garbage(pods []*corev1.Pod, exists func(node string) bool) (orphans, finished []*corev1.Pod) {
	for _, pod := range pods {
		switch {
		case pod.Spec.NodeName != "" && !exists(pod.Spec.NodeName):
			orphans = append(orphans, pod)
		case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
			finished = append(finished, pod)
		}
	}
	slices.SortFunc(finished, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	return orphans, finished[:max(0, len(finished)-maxFinished)]
}

// deleteOrphans asks the API once more for each node: the informers of pods and of
// nodes run apart, and a node may be newer than what is seen of it.
func (e *env) deleteOrphans(ctx context.Context, orphans []*corev1.Pod) error {
	gone := map[string]bool{}
	var doomed []*corev1.Pod
	for _, pod := range orphans {
		node := pod.Spec.NodeName
		if _, asked := gone[node]; !asked {
			_, err := e.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("get node %s: %w", node, err)
			}
			gone[node] = err != nil
		}
		if gone[node] {
			doomed = append(doomed, pod)
		}
	}
	return e.deletePods(ctx, doomed, "its node is gone")
}

// deletePods removes pods at once, without waiting for an agent.
func (e *env) deletePods(ctx context.Context, pods []*corev1.Pod, why string) error {
	var errs []error
	for _, pod := range pods {
		options := metav1.NewDeleteOptions(0)
		options.Preconditions = &metav1.Preconditions{UID: &pod.UID}
		err := e.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options)
		switch {
		case err == nil:
			e.logger.Info("pod is deleted", "namespace", pod.Namespace, "pod", pod.Name, "node", pod.Spec.NodeName, "why", why)
		case !stale(err):
			errs = append(errs, fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
	}
	return errors.Join(errs...)
}
