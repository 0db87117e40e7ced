package controller

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/clustertrustbundlepublisher"
	"k8s.io/utils/clock"
)

// Upstream's: how long a pod's request for a certificate is kept, and how often that is looked at.
const (
	podRequestLife  = 15 * time.Minute
	podRequestSweep = 5 * time.Minute
)

// runTrustBundle keeps the ClusterTrustBundle that says whom to trust who serves the API.
func runTrustBundle(ctx context.Context, e *env) error {
	ca, err := dynamiccertificates.NewStaticCAContent("kube-apiserver-serving", e.cfg.RootCA)
	if err != nil {
		return fmt.Errorf("read the cluster's certificate authority: %w", err)
	}
	c, err := clustertrustbundlepublisher.NewGAClusterTrustBundlePublisher("kubernetes.io/kube-apiserver-serving", ca, e.client)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	c.Run(ctx)
	return nil
}

// runPodRequestCleaner removes requests that nobody can be waiting for any more.
func runPodRequestCleaner(ctx context.Context, e *env) error {
	c := cleaner.NewPCRCleanerController(e.client, e.Certificates().V1().PodCertificateRequests(), clock.RealClock{}, podRequestLife, podRequestSweep)
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func podRequestsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Certificates().V1().PodCertificateRequests().Informer()
}
