package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
)

// certificateLife bounds what a request may ask for; upstream's year.
const certificateLife = 365 * 24 * time.Hour

// runCertificates signs approved requests for certificates of users of the API
// (signer kubernetes.io/kube-apiserver-client), and removes requests that are
// done or that nobody approved. The signers of kubelets are not served: a peer gets
// its certificate when it joins.
func runCertificates(ctx context.Context, e *env) error {
	requests := e.Certificates().V1().CertificateSigningRequests()
	sign, err := signer.NewCSRSigningController(ctx, "certificate-signing", certificatesv1.KubeAPIServerClientSignerName, e.client, requests,
		e.cfg.CAFile, e.cfg.CAKeyFile, certificateLife)
	if err != nil {
		return fmt.Errorf("make signer: %w", err)
	}
	clean := cleaner.NewCSRCleanerController(e.client.CertificatesV1().CertificateSigningRequests(), requests)
	e.Start(ctx.Done())
	var running sync.WaitGroup
	running.Go(func() { sign.Run(ctx, 1) })
	running.Go(func() { clean.Run(ctx, 1) })
	running.Wait()
	return nil
}
