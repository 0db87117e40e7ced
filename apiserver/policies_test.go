package apiserver_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	registration "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	auditpolicy "k8s.io/apiserver/pkg/audit/policy"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func matching(name string) *registration.MatchResources {
	return &registration.MatchResources{ObjectSelector: labelled(name), ResourceRules: []registration.NamedRuleWithOperations{{RuleWithOperations: registration.RuleWithOperations{
		Operations: []registration.OperationType{registration.Create, registration.Update},
		Rule:       registration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods", "configmaps"}},
	}}}}
}

// bindPolicy makes a validating policy of one expression, and binds it.
func bindPolicy(t *testing.T, api kubernetes.Interface, name, expression string, change func(*registration.ValidatingAdmissionPolicySpec, *registration.ValidatingAdmissionPolicyBindingSpec)) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	p := &registration.ValidatingAdmissionPolicy{ObjectMeta: meta, Spec: registration.ValidatingAdmissionPolicySpec{
		MatchConstraints: matching(name), Validations: []registration.Validation{{Expression: expression, Message: name + " says no"}},
	}}
	b := &registration.ValidatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: registration.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: name, ValidationActions: []registration.ValidationAction{registration.Deny},
	}}
	if change != nil {
		change(&p.Spec, &b.Spec)
	}
	r := api.AdmissionregistrationV1()
	if _, err := r.ValidatingAdmissionPolicies().Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ValidatingAdmissionPolicyBindings().Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func podOf(name, image string) *corev1.Pod {
	pod := aPod("")
	pod.GenerateName, pod.Labels = "p-", map[string]string{"case": name}
	pod.Spec.Containers[0].Image = image
	return pod
}

const noLatest = "variables.images.all(i, !i.endsWith(':latest'))"

func images(p *registration.ValidatingAdmissionPolicySpec, _ *registration.ValidatingAdmissionPolicyBindingSpec) {
	p.Variables = []registration.Variable{{Name: "images", Expression: "object.spec.containers.map(c, c.image)"}}
	p.Validations[0].MessageExpression = "'not the latest of ' + string(size(variables.images)) + ' images'"
}

func TestValidatingPolicies(t *testing.T) {
	store, log := raftstore.NewMemory(), &lockedBuffer{}
	p := start(t, store, func(c *apiserver.Config) {
		c.Audit = &apiserver.Audit{Policy: auditpolicy.NewFakePolicyRuleEvaluator(audit.LevelMetadata, nil), Backend: auditlog.NewBackend(log, auditlog.FormatJson, auditv1.SchemeGroupVersion)}
	})
	ctx := t.Context()
	api, heard := p.warned(t)
	maps, pods := api.CoreV1().ConfigMaps("default"), api.CoreV1().Pods("default")
	create := func(m *corev1.ConfigMap) error {
		_, err := maps.Create(ctx, m, metav1.CreateOptions{})
		return err
	}
	value := func(name, v string) *corev1.ConfigMap {
		m := named(name)
		m.Data["k"] = v
		return m
	}
	latest := func(p *peer) error {
		_, err := p.admin.CoreV1().Pods("default").Create(ctx, podOf("latest", "hello:latest"), metav1.CreateOptions{})
		return err
	}

	t.Run("the very first is asked from the moment it is bound", func(t *testing.T) {
		bindPolicy(t, api, "latest", noLatest, images)
		if err := latest(p); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "not the latest of 1 images") {
			t.Errorf("got %v", err)
		}
		if _, err := pods.Create(ctx, podOf("latest", "hello:1"), metav1.CreateOptions{}); err != nil {
			t.Errorf("a pod that keeps to it: %v", err)
		}
		if _, err := pods.Create(ctx, podOf("latest", "hello:latest"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); !apierrors.IsInvalid(err) {
			t.Errorf("dry run: %v", err)
		}
	})
	t.Run("an expression that cannot be", func(t *testing.T) {
		bad := &registration.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "bad"}, Spec: registration.ValidatingAdmissionPolicySpec{
			MatchConstraints: matching("bad"), Validations: []registration.Validation{{Expression: "object.spec."}},
		}}
		if _, err := api.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, bad, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("warn and audit", func(t *testing.T) {
		bindPolicy(t, api, "warns", "false", func(p *registration.ValidatingAdmissionPolicySpec, b *registration.ValidatingAdmissionPolicyBindingSpec) {
			b.ValidationActions = []registration.ValidationAction{registration.Warn, registration.Audit}
			p.AuditAnnotations = []registration.AuditAnnotation{{Key: "k", ValueExpression: "'v'"}}
		})
		eventually(t, "a warning", func() bool { return create(value("warns", "1")) == nil && heard.say("warns says no") })
		eventually(t, "it is in the audit log", func() bool {
			all := strings.Join(log.lines(), "")
			return strings.Contains(all, `"warns/k":"v"`) && strings.Contains(all, `"validation.policy.admission.k8s.io/validation_failure":`)
		})
	})
	t.Run("match conditions", func(t *testing.T) {
		bindPolicy(t, api, "conditions", "false", func(p *registration.ValidatingAdmissionPolicySpec, _ *registration.ValidatingAdmissionPolicyBindingSpec) {
			p.MatchConditions = []registration.MatchCondition{{Name: "two", Expression: "object.data.k == '2'"}}
		})
		eventually(t, "what matches is refused", func() bool { return apierrors.IsInvalid(create(value("conditions", "2"))) })
		if err := create(value("conditions", "1")); err != nil {
			t.Errorf("what does not match: %v", err)
		}
	})
	t.Run("who asks, and where", func(t *testing.T) {
		bindPolicy(t, api, "who", "authorizer.group('').resource('nodes').check('delete').allowed() && namespaceObject.metadata.name == 'default' && request.userInfo.username != 'admin'",
			func(p *registration.ValidatingAdmissionPolicySpec, _ *registration.ValidatingAdmissionPolicyBindingSpec) {
				p.Validations[0].Reason = ptr(metav1.StatusReasonForbidden)
			})
		eventually(t, "admin is refused", func() bool { return apierrors.IsForbidden(create(value("who", ""))) })
		other := client(t, p.ClientConfig("root", "system:masters")).CoreV1().ConfigMaps("default")
		if _, err := other.Create(ctx, value("who", ""), metav1.CreateOptions{}); err != nil {
			t.Errorf("another: %v", err)
		}
	})
	t.Run("parameters", func(t *testing.T) {
		if err := create(configMap("limit", "7")); err != nil {
			t.Fatal(err)
		}
		bindPolicy(t, api, "params", "int(object.data.k) <= int(params.data.k)", func(p *registration.ValidatingAdmissionPolicySpec, b *registration.ValidatingAdmissionPolicyBindingSpec) {
			p.ParamKind = &registration.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
			b.ParamRef = &registration.ParamRef{Name: "limit", Namespace: "default", ParameterNotFoundAction: ptr(registration.DenyAction)}
		})
		eventually(t, "too much is refused", func() bool { return apierrors.IsInvalid(create(value("params", "8"))) })
		if err := create(value("params", "7")); err != nil {
			t.Errorf("what is allowed: %v", err)
		}
		if _, err := maps.Update(ctx, configMap("limit", "9"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the parameter's change counts", func() bool { return create(value("params", "8")) == nil })
		if err := maps.Delete(ctx, "limit", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "without it nothing goes", func() bool { return create(value("params", "1")) != nil })

		// A policy that goes must not stop the informer that the rest of the process shares.
		r := api.AdmissionregistrationV1()
		if err := r.ValidatingAdmissionPolicyBindings().Delete(ctx, "params", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the policy is gone", func() bool { return create(value("params", "99")) == nil })
		if p.Informers().Core().V1().ConfigMaps().Informer().IsStopped() {
			t.Error("the shared informer of ConfigMaps has ended")
		}
	})

	p.stop()
	p = start(t, store)
	if err := latest(p); !apierrors.IsInvalid(err) {
		t.Errorf("after a restart: %v", err)
	}
	r := p.admin.AdmissionregistrationV1()
	if err := r.ValidatingAdmissionPolicyBindings().Delete(ctx, "latest", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a binding that is gone does not count", func() bool { return latest(p) == nil })
}

func TestMutatingPolicies(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, r := t.Context(), p.admin.AdmissionregistrationV1()
	bind := func(name string, m registration.Mutation) {
		t.Helper()
		meta := metav1.ObjectMeta{Name: name}
		_, err := r.MutatingAdmissionPolicies().Create(ctx, &registration.MutatingAdmissionPolicy{ObjectMeta: meta, Spec: registration.MutatingAdmissionPolicySpec{
			MatchConstraints: matching("mutating"), Mutations: []registration.Mutation{m}, ReinvocationPolicy: registration.NeverReinvocationPolicy,
			Variables: []registration.Variable{{Name: "who", Expression: "request.userInfo.username"}},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.MutatingAdmissionPolicyBindings().Create(ctx, &registration.MutatingAdmissionPolicyBinding{ObjectMeta: meta,
			Spec: registration.MutatingAdmissionPolicyBindingSpec{PolicyName: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func() *corev1.Pod {
		t.Helper()
		pod, err := p.admin.CoreV1().Pods("default").Create(ctx, podOf("mutating", "hello:1"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	bind("apply", registration.Mutation{PatchType: registration.PatchTypeApplyConfiguration, ApplyConfiguration: &registration.ApplyConfiguration{
		Expression: "Object{metadata: Object.metadata{labels: Object.metadata.labels{maker: variables.who}}}"}})
	if pod := create(); pod.Labels["maker"] != "admin" || pod.Labels["case"] != "mutating" {
		t.Errorf("the very first: labels %v", pod.Labels)
	}
	bind("patch", registration.Mutation{PatchType: registration.PatchTypeJSONPatch, JSONPatch: &registration.JSONPatch{
		Expression: `[JSONPatch{op: "add", path: "/spec/terminationGracePeriodSeconds", value: 3}]`}})
	eventually(t, "both are asked", func() bool {
		pod := create()
		return pod.Labels["maker"] == "admin" && *pod.Spec.TerminationGracePeriodSeconds == 3
	})
}

// away is a store that has no quorum for as long as cut is set.
type away struct {
	raftstore.Store
	cut atomic.Bool
}

func (a *away) Sync(ctx context.Context) error {
	if a.cut.Load() {
		return &raftstore.NoQuorumError{Missing: []string{"b"}, Voters: 2}
	}
	return a.Store.Sync(ctx)
}

// A peer that comes back may not know yet what was registered meanwhile: until
// it has caught up it writes nothing, and still gives pods their tokens.
func TestPeerThatHasNotCaughtUp(t *testing.T) {
	store := &away{Store: raftstore.NewMemory()}
	p := start(t, store)
	p.stop()
	store.cut.Store(true)
	p = start(t, store)
	ctx := t.Context()
	maps := p.admin.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(ctx, configMap("a", ""), metav1.CreateOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("create: %v", err)
	}
	if _, err := p.admin.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}); err != nil {
		t.Errorf("token: %v", err)
	}
	store.cut.Store(false)
	for _, name := range []string{"a", "b"} {
		if _, err := maps.Create(ctx, configMap(name, ""), metav1.CreateOptions{}); err != nil {
			t.Errorf("create with quorum: %v", err)
		}
	}
}
