package controller

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/replication"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
)

const (
	// workers of each controller; upstream's 5 to 20 are for thousands of objects.
	workers = 2
	// endpointsPerSlice is upstream's default.
	endpointsPerSlice = 100
	// endpointBatch gathers the changes of a Service's pods into one write. Traffic
	// leaves dead peers by gossip, so this delays only additions.
	endpointBatch = 50 * time.Millisecond
	// namespaceResync is upstream's default.
	namespaceResync = 5 * time.Minute
)

// stock are Kubernetes' own controllers. Each is made as
// cmd/kube-controller-manager/app of the same version makes it, with the name
// that bootstrap RBAC knows. Not here: pod garbage collection, whose package
// links the kubelet (see podgc.go), and what our API does not serve.
func stock() []controller {
	return []controller{
		{name: "deployment", user: "deployment-controller", run: runDeployment},
		{name: "replicaset", user: "replicaset-controller", run: runReplicaSet},
		{name: "daemonset", user: "daemon-set-controller", run: runDaemonSet, rare: daemonSetsOf},
		{name: "statefulset", user: "statefulset-controller", run: runStatefulSet, rare: statefulSetsOf},
		{name: "job", user: "job-controller", run: runJob},
		{name: "cronjob", user: "cronjob-controller", run: runCronJob, rare: cronJobsOf},
		{name: "ttl-after-finished", user: "ttl-after-finished-controller", run: runTTLAfterFinished, rare: jobsOf},
		{name: "endpointslice", user: "endpointslice-controller", run: runEndpointSlice},
		{name: "namespace", user: "namespace-controller", run: runNamespace},
		{name: "garbage-collector", user: "generic-garbage-collector", run: runGarbageCollector},
		{name: "serviceaccount", user: "service-account-controller", run: runServiceAccount},
		{name: "root-ca", user: "root-ca-cert-publisher", run: runRootCA},
		{name: "clusterrole-aggregation", user: "clusterrole-aggregation-controller", run: runRoleAggregation},
		{name: "taint-eviction", user: "node-controller", run: runTaintEviction},
		{name: "endpoints", user: "endpoint-controller", run: runEndpoints},
		{name: "endpointslice-mirroring", user: "endpointslicemirroring-controller", run: runMirroring, rare: endpointsOf, counts: isWrittenByHand},
		{name: "replicationcontroller", user: "replication-controller", run: runReplicationController, rare: replicationControllersOf},
		{name: "disruption", user: "disruption-controller", run: runDisruption, rare: budgetsOf},
		{name: "resourcequota", user: "resourcequota-controller", run: runResourceQuota, rare: quotasOf},
		{name: "policy-status", user: "validatingadmissionpolicy-status-controller", run: runPolicyStatus, rare: policiesOf},
		{name: "horizontalpodautoscaler", user: "horizontal-pod-autoscaler", run: runAutoscaler, rare: autoscalersOf},
		{name: "certificate", user: "certificate-controller", run: runCertificates, rare: certificateRequestsOf},
		{name: "pod-certificate-cleaner", user: "podcertificaterequestcleaner", run: runPodRequestCleaner, rare: podRequestsOf},
		{name: "trust-bundle", user: "kube-apiserver-serving-clustertrustbundle-publisher", run: runTrustBundle},
		{name: "serviceaccount-token", user: "tokens-controller", run: runAccountTokens},
	}
}

func runDeployment(ctx context.Context, e *env) error {
	c, err := deployment.NewDeploymentController(ctx, e.Apps().V1().Deployments(), e.Apps().V1().ReplicaSets(), e.Core().V1().Pods(), e.client)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runReplicaSet(ctx context.Context, e *env) error {
	c := replicaset.NewReplicaSetController(ctx, e.Apps().V1().ReplicaSets(), e.Core().V1().Pods(), e.client, replicaset.BurstReplicas)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runDaemonSet(ctx context.Context, e *env) error {
	c, err := daemon.NewDaemonSetsController(ctx, e.Apps().V1().DaemonSets(), e.Apps().V1().ControllerRevisions(), e.Core().V1().Pods(),
		e.Core().V1().Nodes(), e.client, flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runStatefulSet(ctx context.Context, e *env) error {
	c := statefulset.NewStatefulSetController(ctx, e.Core().V1().Pods(), e.Apps().V1().StatefulSets(), e.Core().V1().PersistentVolumeClaims(),
		e.Apps().V1().ControllerRevisions(), e.client)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runJob(ctx context.Context, e *env) error {
	// Workloads and pod groups are for gang scheduling, which is off.
	c, err := job.NewController(ctx, e.client, e.Core().V1().Pods(), e.Batch().V1().Jobs(), nil, nil)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runCronJob(ctx context.Context, e *env) error {
	c, err := cronjob.NewControllerV2(ctx, e.Batch().V1().Jobs(), e.Batch().V1().CronJobs(), e.client)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runTTLAfterFinished(ctx context.Context, e *env) error {
	c := ttlafterfinished.New(ctx, e.Batch().V1().Jobs(), e.client)
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func runEndpointSlice(ctx context.Context, e *env) error {
	c := endpointslice.NewController(ctx, e.Core().V1().Pods(), e.Core().V1().Services(), e.Core().V1().Nodes(), e.Discovery().V1().EndpointSlices(),
		endpointsPerSlice, e.client, endpointBatch)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runNamespace(ctx context.Context, e *env) error {
	objects, err := metadata.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	c := namespace.NewNamespaceController(ctx, e.client, objects, e.client.Discovery().ServerPreferredNamespacedResources,
		e.Core().V1().Namespaces(), namespaceResync, corev1.FinalizerKubernetes)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

func runServiceAccount(ctx context.Context, e *env) error {
	c, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), e.Core().V1().ServiceAccounts(), e.Core().V1().Namespaces(), e.client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func runRootCA(ctx context.Context, e *env) error {
	c, err := rootcacertpublisher.NewPublisher(e.Core().V1().ConfigMaps(), e.Core().V1().Namespaces(), e.client, e.cfg.RootCA)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func runRoleAggregation(ctx context.Context, e *env) error {
	c := clusterroleaggregation.NewClusterRoleAggregation(e.Rbac().V1().ClusterRoles(), e.client.RbacV1())
	e.Start(ctx.Done())
	c.Run(ctx, 1)
	return nil
}

func runTaintEviction(ctx context.Context, e *env) error {
	// It looks pods up by node and, in upstream's process, relies on another controller for the index.
	if err := indexPodsByNode(e.Core().V1().Pods().Informer()); err != nil {
		return err
	}
	c, err := tainteviction.New(ctx, e.client, e.Core().V1().Pods(), e.Core().V1().Nodes(), "taint-eviction-controller")
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	c.Run(ctx)
	return nil
}

func runReplicationController(ctx context.Context, e *env) error {
	c := replication.NewReplicationManager(ctx, e.Core().V1().Pods(), e.Core().V1().ReplicationControllers(), e.client, replicaset.BurstReplicas)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}
