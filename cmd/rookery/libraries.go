package main

import (
	"fmt"
	"log/slog"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	kube "k8s.io/component-base/version"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/capabilities"

	_ "github.com/rundigitalplatform/rookery/cmd/rookery/quietqueues" // no work queue measures itself
	"github.com/rundigitalplatform/rookery/controller"
)

func kubernetesVersion() string { return kube.Get().GitVersion }

// setUpLibraries sets what Kubernetes' packages keep for a whole process.
func setUpLibraries(log *slog.Logger) error {
	klog.SetSlogLogger(log.With("room", "kubernetes"))
	// A panic in one worker of a stock controller must not end a daemon that holds much more than that.
	utilruntime.ReallyCrash = false
	// As every distribution of Kubernetes: who may run privileged pods is said by the
	// labels of namespaces (PodSecurity).
	capabilities.Setup(true, 0)
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(controller.Features()); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	return nil
}
