package controller

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	accounts "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// runAccountTokens fills Secrets of type kubernetes.io/service-account-token, which
// people write by hand for programs outside the cluster. It begins with the first of them
// and watches no other Secret. It acts as kube-controller-manager, as upstream: no
// role is made for it alone.
func runAccountTokens(ctx context.Context, e *env) error {
	client, err := kubernetes.NewForConfig(e.cfg.ClientConfig("system:kube-controller-manager"))
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	tokens, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, e.cfg.TokenKey)
	if err != nil {
		return fmt.Errorf("use service account signing key: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	own := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = "type=" + string(corev1.SecretTypeServiceAccountToken)
	}))
	defer func() { cancel(); own.Shutdown() }()

	there := make(chan struct{})
	seen := sync.OnceFunc(func() { close(there) })
	if _, err := own.Core().V1().Secrets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { seen() }}); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	own.Start(ctx.Done())
	select {
	case <-there:
	case <-ctx.Done():
		return ctx.Err()
	}
	c, err := accounts.NewTokensController(klog.FromContext(ctx), e.Core().V1().ServiceAccounts(), own.Core().V1().Secrets(), client,
		accounts.TokensControllerOptions{TokenGenerator: tokens, RootCA: e.cfg.RootCA})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}
