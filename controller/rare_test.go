package controller_test

import (
	"strings"
	"testing"

	registration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	migrationv1 "k8s.io/api/storagemigration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// TestRareKinds covers the controllers that begin with the first object of their kind.
func TestRareKinds(t *testing.T) {
	c := newCluster(t)
	defer c.term()()
	t.Run("disruption budget holds evictions", c.disruption)
	t.Run("quota counts and refuses", c.quota)
	t.Run("replication controller", c.replication)
	t.Run("daemon set and stateful set", c.sets)
	t.Run("endpoints are mirrored", c.mirrored)
	t.Run("endpoints follow pods", c.olderEndpoints)
	t.Run("policies' expressions are checked", c.policyStatus)
	t.Run("secrets of service accounts", c.accountToken)
	t.Run("requests for certificates", c.certificates)
	t.Run("stored versions are migrated", c.migration)
	t.Run("whom to trust is published", c.trust)
}

func (c *cluster) disruption(t *testing.T) {
	ctx := t.Context()
	c.deploy("default", "kept", 3)
	c.eventually("pods run", func() bool { return c.endpoints("default", "kept") == 3 })
	budgets := c.admin.PolicyV1().PodDisruptionBudgets("default")
	_, err := budgets.Create(ctx, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "kept"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr.To(intstr.FromInt32(3)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "kept"}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	allowed := func(n int32) func() bool {
		return func() bool {
			b, err := budgets.Get(ctx, "kept", metav1.GetOptions{})
			return err == nil && b.Status.ObservedGeneration == b.Generation && b.Status.CurrentHealthy == 3 && b.Status.DisruptionsAllowed == n
		}
	}
	c.eventually("the budget is counted", allowed(0))
	evict := func() error {
		pods, err := c.admin.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=kept"})
		must(t, err)
		return c.admin.PolicyV1().Evictions("default").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pods.Items[0].Name}})
	}
	if err := evict(); !apierrors.IsTooManyRequests(err) {
		t.Fatalf("eviction against the budget: %v, want 429", err)
	}
	_, err = budgets.Patch(ctx, "kept", "application/merge-patch+json", []byte(`{"spec":{"minAvailable":2}}`), metav1.PatchOptions{})
	must(t, err)
	c.eventually("one may go", allowed(1))
	must(t, evict())
	c.eventually("a replacement runs", allowed(1))
}

func (c *cluster) policyStatus(t *testing.T) {
	policies := c.admin.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	_, err := policies.Create(t.Context(), &registration.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "typed"},
		Spec: registration.ValidatingAdmissionPolicySpec{
			MatchConstraints: &registration.MatchResources{ResourceRules: []registration.NamedRuleWithOperations{{RuleWithOperations: registration.RuleWithOperations{
				Operations: []registration.OperationType{registration.Create},
				Rule:       registration.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
			}}}},
			Validations: []registration.Validation{{Expression: "object.spec.replicas <= 3"}, {Expression: "object.spec.copies <= 3"}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("the second expression is found wrong", func() bool {
		p, err := policies.Get(t.Context(), "typed", metav1.GetOptions{})
		if err != nil || p.Status.TypeChecking == nil || p.Status.ObservedGeneration != p.Generation {
			return false
		}
		wrong := p.Status.TypeChecking.ExpressionWarnings
		return len(wrong) == 1 && wrong[0].FieldRef == "spec.validations[1].expression" && strings.Contains(wrong[0].Warning, "undefined field 'copies'")
	})
}

func (c *cluster) quota(t *testing.T) {
	ctx := t.Context()
	_, err := c.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "small"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.admin.CoreV1().ResourceQuotas("small").Create(ctx, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "two"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/configmaps": resource.MustParse("3"), "pods": resource.MustParse("2")}},
	}, metav1.CreateOptions{})
	must(t, err)
	used := func(kind corev1.ResourceName, n int64) func() bool {
		return func() bool {
			q, err := c.admin.CoreV1().ResourceQuotas("small").Get(ctx, "two", metav1.GetOptions{})
			used, ok := q.Status.Used[kind]
			return err == nil && ok && used.Value() == n
		}
	}
	// One is there already: kube-root-ca.crt.
	c.eventually("use is counted", func() bool { return used("pods", 0)() && used("count/configmaps", 1)() })
	create := func(name string) error {
		_, err := c.admin.CoreV1().ConfigMaps("small").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	must(t, create("a"))
	must(t, create("b"))
	// The controller's first count may be of a moment ago, as upstream: what it let through is taken back.
	c.eventually("above the quota is refused", func() bool {
		err := create("c")
		if err == nil {
			must(t, c.admin.CoreV1().ConfigMaps("small").Delete(ctx, "c", metav1.DeleteOptions{}))
		}
		return apierrors.IsForbidden(err)
	})
	c.deploy("small", "three", 3)
	c.eventually("two of three pods", func() bool { return used("pods", 2)() })
	must(t, c.admin.CoreV1().ConfigMaps("small").Delete(ctx, "a", metav1.DeleteOptions{}))
	c.eventually("what was deleted is given back", func() bool { return create("c") == nil })
}

func (c *cluster) replication(t *testing.T) {
	labels := map[string]string{"app": "old"}
	_, err := c.admin.CoreV1().ReplicationControllers("default").Create(t.Context(), &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "old"},
		Spec: corev1.ReplicationControllerSpec{Replicas: ptr.To[int32](2), Selector: labels, Template: &corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example/old"}}},
		}},
	}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("two ready replicas", func() bool {
		rc, err := c.admin.CoreV1().ReplicationControllers("default").Get(t.Context(), "old", metav1.GetOptions{})
		return err == nil && rc.Status.ReadyReplicas == 2
	})
}

func (c *cluster) mirrored(t *testing.T) {
	ctx := t.Context()
	_, err := c.admin.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "nas"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 445}}},
	}, metav1.CreateOptions{})
	must(t, err)
	//lint:ignore SA1019 deprecated, and still what people write
	_, err = c.admin.CoreV1().Endpoints("default").Create(ctx, &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: "nas"},
		//lint:ignore SA1019 as above
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.9"}}, Ports: []corev1.EndpointPort{{Port: 445}}}},
	}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("a slice of it", func() bool { return c.endpoints("default", "nas") == 1 })
	must(t, c.admin.CoreV1().Endpoints("default").Delete(ctx, "nas", metav1.DeleteOptions{}))
	c.eventually("the slice goes with it", func() bool { return c.endpoints("default", "nas") == 0 })
}

func (c *cluster) olderEndpoints(t *testing.T) {
	c.deploy("default", "scraped", 2)
	c.eventually("two addresses", func() bool {
		e, err := c.admin.CoreV1().Endpoints("default").Get(t.Context(), "scraped", metav1.GetOptions{})
		return err == nil && len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 2
	})
	if n := c.endpoints("default", "scraped"); n != 2 {
		t.Errorf("%d endpoints in the slices, want 2: these Endpoints must not be mirrored", n)
	}
}

func (c *cluster) accountToken(t *testing.T) {
	ctx := t.Context()
	secrets := c.admin.CoreV1().Secrets("default")
	_, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "outside", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("token and CA are filled in", func() bool {
		s, err := secrets.Get(ctx, "outside", metav1.GetOptions{})
		return err == nil && len(s.Data["token"]) > 0 && len(s.Data["ca.crt"]) > 0 && string(s.Data["namespace"]) == "default"
	})
}

func (c *cluster) sets(t *testing.T) {
	ctx := t.Context()
	labels := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	template := func(name string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels(name).MatchLabels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example/" + name}}},
		}
	}
	_, err := c.admin.AppsV1().DaemonSets("default").Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "everywhere"},
		Spec:       appsv1.DaemonSetSpec{Selector: labels("everywhere"), Template: template("everywhere")},
	}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.admin.AppsV1().StatefulSets("default").Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec:       appsv1.StatefulSetSpec{Replicas: ptr.To[int32](2), ServiceName: "db", Selector: labels("db"), Template: template("db")},
	}, metav1.CreateOptions{})
	must(t, err)
	c.eventually("a pod on each node", func() bool { return c.spread("default", "everywhere") == "1 1 1" })
	c.eventually("one after the other", func() bool {
		db, err := c.admin.AppsV1().StatefulSets("default").Get(ctx, "db", metav1.GetOptions{})
		return err == nil && db.Status.ReadyReplicas == 2
	})
}

func (c *cluster) migration(t *testing.T) {
	ctx, migrations := t.Context(), c.admin.StoragemigrationV1().StorageVersionMigrations()
	for name, resource := range map[string]string{"maps": "configmaps", "nothing": "gadgets"} {
		_, err := migrations.Create(ctx, &migrationv1.StorageVersionMigration{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: migrationv1.StorageVersionMigrationSpec{Resource: metav1.GroupResource{Resource: resource}},
		}, metav1.CreateOptions{})
		must(t, err)
	}
	before, err := c.admin.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{})
	must(t, err)
	c.eventually("it succeeded", func() bool {
		m, err := migrations.Get(ctx, "maps", metav1.GetOptions{})
		return err == nil && m.Status.ResourceVersion != "" && meta.IsStatusConditionTrue(m.Status.Conditions, string(migrationv1.MigrationSucceeded))
	})
	// What is stored in its version already is not written.
	for _, old := range before.Items {
		if now, err := c.admin.CoreV1().ConfigMaps(old.Namespace).Get(ctx, old.Name, metav1.GetOptions{}); err == nil && old.Name == "kube-root-ca.crt" && now.ResourceVersion != old.ResourceVersion {
			t.Errorf("%s/%s was written", old.Namespace, old.Name)
		}
	}
	// A kind that is not there may come yet.
	if m, err := migrations.Get(ctx, "nothing", metav1.GetOptions{}); err != nil || len(m.Status.Conditions) != 0 {
		t.Errorf("the migration of nothing: %+v, %v", m.Status, err)
	}
	must(t, migrations.Delete(ctx, "nothing", metav1.DeleteOptions{}))
}

func (c *cluster) trust(t *testing.T) {
	c.eventually("there is a bundle of the cluster's authority", func() bool {
		list, err := c.admin.CertificatesV1().ClusterTrustBundles().List(t.Context(), metav1.ListOptions{FieldSelector: "spec.signerName=kubernetes.io/kube-apiserver-serving"})
		return err == nil && len(list.Items) == 1 && strings.Contains(list.Items[0].Spec.TrustBundle, "BEGIN CERTIFICATE")
	})
}
