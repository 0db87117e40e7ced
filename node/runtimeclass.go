package node

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// handler is what the pod's RuntimeClass says runs it; empty: the engine's default.
func (a *Agent) handler(pod *v1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	class, err := a.classes.Get(*name)
	switch {
	case apierrors.IsNotFound(err):
		return "", err // in the words of kubelet
	case err != nil:
		return "", fmt.Errorf("failed to lookup RuntimeClass %s: %w", *name, err)
	}
	return class.Handler, nil
}
