package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// health carries out what [decide] says.
type health struct {
	*env
	nodes corelisters.NodeLister
	pods  cache.Indexer
}

// runHealth keeps Nodes in step with gossip.
func runHealth(ctx context.Context, e *env) error {
	nodes, pods := e.Core().V1().Nodes(), e.Core().V1().Pods()
	if err := indexPodsByNode(pods.Informer()); err != nil {
		return err
	}
	w := newWaker()
	if err := w.on(nodes.Informer()); err != nil {
		return err
	}
	members, cancel := e.cfg.Members.Subscribe()
	defer cancel()
	if err := e.synced(ctx, nodes.Informer(), pods.Informer()); err != nil {
		return err
	}
	h := &health{env: e, nodes: nodes.Lister(), pods: pods.Informer().GetIndexer()}
	e.loop(ctx, w, members, tick, h.reconcile)
	return nil
}

func (h *health) reconcile(ctx context.Context) error {
	nodes, err := h.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	now := time.Now()
	verdicts := decide(nodes, h.cfg.Members.Snapshot(), now.Sub(h.began) >= h.cfg.Settle, now)
	var errs []error
	for _, node := range nodes {
		if err := h.carryOut(ctx, node, verdicts[node.Name]); err != nil && !stale(err) {
			errs = append(errs, fmt.Errorf("node %s: %w", node.Name, err))
		}
	}
	return errors.Join(errs...)
}

// stale tells errors that mean that what was seen is out of date. The change
// itself will wake the loop.
func stale(err error) bool { return apierrors.IsConflict(err) || apierrors.IsNotFound(err) }

// carryOut does the most urgent thing first: endpoints go with the pods'
// readiness, then nothing new is placed there, then what is there is evicted.
func (h *health) carryOut(ctx context.Context, node *corev1.Node, v verdict) error {
	if v.remove {
		return h.remove(ctx, node)
	}
	if v.conditions != nil {
		updated := node.DeepCopy()
		updated.Status.Conditions = v.conditions
		fresh, err := h.client.CoreV1().Nodes().UpdateStatus(ctx, updated, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("set conditions: %w", err)
		}
		node = fresh
		h.logger.Warn("node is unreachable", "node", node.Name)
	}
	if v.retaint {
		updated := node.DeepCopy()
		updated.Spec.Taints = v.taints
		if _, err := h.client.CoreV1().Nodes().Update(ctx, updated, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("set taints: %w", err)
		}
		h.logger.Info("node is tainted anew", "node", node.Name, "taints", len(v.taints))
	}
	if v.silence {
		return h.silence(ctx, node.Name)
	}
	return nil
}

func (h *health) remove(ctx context.Context, node *corev1.Node) error {
	same := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &node.UID}}
	if err := h.client.CoreV1().Nodes().Delete(ctx, node.Name, same); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	h.logger.Info("node is deleted, its peer has no record any more", "node", node.Name)
	return nil
}

// silence sets the pods of a lost node not Ready, so that their endpoints go at
// once; the agent will say otherwise when it is back.
func (h *health) silence(ctx context.Context, node string) error {
	pods, err := podsOn(h.pods, node)
	if err != nil {
		return err
	}
	var errs []error
	for _, pod := range pods {
		updated := silenced(pod, time.Now())
		if updated == nil {
			continue
		}
		if _, err := h.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{}); err != nil && !stale(err) {
			errs = append(errs, fmt.Errorf("set pod %s/%s not ready: %w", pod.Namespace, pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

// silenced is pod with Ready=False; nil if it is not Ready anyway.
func silenced(pod *corev1.Pod, now time.Time) *corev1.Pod {
	for i, c := range pod.Status.Conditions {
		if c.Type != corev1.PodReady || c.Status != corev1.ConditionTrue {
			continue
		}
		updated := pod.DeepCopy()
		ready := &updated.Status.Conditions[i]
		ready.Status, ready.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
		ready.Reason, ready.Message = reasonUnknown, messageUnknown
		return updated
	}
	return nil
}
