package apiserver

import (
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	revision "k8s.io/kubernetes/pkg/registry/apps/controllerrevision/storage"
	daemonset "k8s.io/kubernetes/pkg/registry/apps/daemonset/storage"
	deployment "k8s.io/kubernetes/pkg/registry/apps/deployment/storage"
	replicaset "k8s.io/kubernetes/pkg/registry/apps/replicaset/storage"
	statefulset "k8s.io/kubernetes/pkg/registry/apps/statefulset/storage"
	autoscaler "k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler/storage"
	cronjob "k8s.io/kubernetes/pkg/registry/batch/cronjob/storage"
	job "k8s.io/kubernetes/pkg/registry/batch/job/storage"
	disruption "k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget/storage"
	priorityclass "k8s.io/kubernetes/pkg/registry/scheduling/priorityclass/storage"
)

// workload builds the groups that describe what runs.
func (b *builder) workload() []group {
	deployments, sets, stateful, jobs := one(b, deployment.NewStorage), one(b, replicaset.NewStorage), one(b, statefulset.NewStorage), one(b, job.NewStorage)
	apps := resources{
		"deployments": deployments.Deployment, "deployments/status": deployments.Status, "deployments/scale": deployments.Scale,
		"replicasets": sets.ReplicaSet, "replicasets/status": sets.Status, "replicasets/scale": sets.Scale,
		"statefulsets": stateful.StatefulSet, "statefulsets/status": stateful.Status, "statefulsets/scale": stateful.Scale,
		"controllerrevisions": one(b, revision.NewREST),
	}
	withStatus(b, apps, "daemonsets", daemonset.NewREST)
	batch := resources{"jobs": jobs.Job, "jobs/status": jobs.Status}
	withStatus(b, batch, "cronjobs", cronjob.NewREST)
	autoscaling, policy := resources{}, resources{}
	withStatus(b, autoscaling, "horizontalpodautoscalers", autoscaler.NewREST)
	withStatus(b, policy, "poddisruptionbudgets", disruption.NewREST)
	return []group{
		{"apps", v1(apps)},
		{"batch", v1(batch)},
		{"autoscaling", []version{{"v2", autoscaling}, {"v1", autoscaling}}},
		{"policy", v1(policy)},
		{"scheduling.k8s.io", v1(resources{"priorityclasses": one(b, priorityclass.NewREST)})},
	}
}
