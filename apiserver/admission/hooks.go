package admission

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	webhook "k8s.io/apiserver/pkg/admission/plugin/webhook/initializer"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/kubeapiserver/admission/exclusion"
	"k8s.io/kubernetes/plugin/pkg/admission/runtimeclass"
)

// hooks are the plugins that ask what users have registered: policies, webhooks
// and runtime classes. All are dormant until there is something to ask.
type hooks struct {
	Config
	caughtUp atomic.Bool // this peer's state was as new as the cluster's once since it started
}

// register adds the plugins under their upstream names.
func (h *hooks) register(plugins *admission.Plugins) {
	for name, p := range map[string]struct {
		due  func(context.Context, admission.Attributes) (bool, error)
		make func() (admission.Interface, error)
	}{
		// A policy without a binding is not asked.
		mutatingpolicy.PluginName:    {h.anyOf("mutatingadmissionpolicybindings"), func() (admission.Interface, error) { return mutatingpolicy.NewPlugin(nil) }},
		mutatingwebhook.PluginName:   {h.anyOf("mutatingwebhookconfigurations"), func() (admission.Interface, error) { return mutatingwebhook.NewMutatingWebhook(nil) }},
		validatingpolicy.PluginName:  {h.anyOf("validatingadmissionpolicybindings"), func() (admission.Interface, error) { return validatingpolicy.NewPlugin(nil) }},
		validatingwebhook.PluginName: {h.anyOf("validatingwebhookconfigurations"), func() (admission.Interface, error) { return validatingwebhook.NewValidatingAdmissionWebhook(nil) }},
		runtimeclass.PluginName:      {namesRuntimeClass, func() (admission.Interface, error) { return runtimeclass.NewRuntimeClass(), nil }},
	} {
		plugins.Register(name, func(io.Reader) (admission.Interface, error) {
			return &dormant{name: name, due: p.due, wake: func() (admission.Interface, error) {
				plugin, err := p.make()
				if err != nil {
					return nil, err
				}
				return plugin, h.initialize(plugin)
			}}, nil
		})
	}
}

// namesRuntimeClass tells pods that have anything to do with a runtime class.
func namesRuntimeClass(_ context.Context, a admission.Attributes) (bool, error) {
	pod, ok := a.GetObject().(*core.Pod)
	return ok && (pod.Spec.RuntimeClassName != nil || len(pod.Spec.Overhead) > 0), nil
}

// anyOf tells whether there is an object of a kind in this peer's own state. That
// is known sooner than any informer knows it: whoever has seen the first object
// here is checked by it.
func (h *hooks) anyOf(resource string) func(context.Context, admission.Attributes) (bool, error) {
	prefix := h.Prefix + "/admissionregistration.k8s.io/" + resource + "/"
	reviews := exclusion.Excluded()
	return func(ctx context.Context, a admission.Attributes) (bool, error) {
		// The plugins pass these over too: nobody may lock themselves out.
		if rules.IsExemptAdmissionConfigurationResource(a) || slices.Contains(reviews, a.GetResource().GroupResource()) {
			return false, nil
		}
		if err := h.catchUp(ctx, a); err != nil {
			return false, err
		}
		found, err := h.Store.List(prefix, "", 0, 1)
		if err != nil {
			return false, fmt.Errorf("look for %s: %w", resource, err)
		}
		return found.Total > 0, nil
	}
}

// catchUp keeps the first writes after a start waiting until this peer has all
// that was registered while it was down. What writes nothing does not wait,
// because it must work on an island too.
func (h *hooks) catchUp(ctx context.Context, a admission.Attributes) error {
	token := a.GetResource().Resource == "serviceaccounts" && a.GetSubresource() == "token"
	if h.caughtUp.Load() || a.GetOperation() == admission.Connect || token {
		return nil
	}
	if err := h.Quorum(ctx); err != nil {
		return err
	}
	h.caughtUp.Store(true)
	return nil
}

// initialize gives a plugin what kube-apiserver gives it, and starts its informers.
func (h *hooks) initialize(plugin admission.Interface) error {
	objects, err := h.Objects()
	if err != nil {
		return fmt.Errorf("make dynamic client: %w", err)
	}
	admission.PluginInitializers{
		initializer.New(h.Client, objects, lifelong{h.Informers, h.StartInformers}, h.Authorizer, utilfeature.DefaultFeatureGate, nil, h.Life.Done(), newMapper(h.Client.Discovery())),
		webhook.NewPluginInitializer(nil, h.Services),
		excluding{},
	}.Initialize(plugin)
	if err := admission.ValidateInitialization(plugin); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	h.StartInformers()
	return nil
}

// excluding tells plugins which reviews they must leave alone, because without
// them nobody could sign in to repair anything.
type excluding struct{}

func (excluding) Initialize(plugin admission.Interface) {
	if wants, ok := plugin.(initializer.WantsExcludedAdmissionResources); ok {
		wants.SetExcludedAdmissionResources(exclusion.Excluded())
	}
}

// lifelong is the shared factory for those who would start it with a channel of
// their own: a policy does so for the kind of its parameters and ends them with
// itself, and they could not be started again for anybody else.
type lifelong struct {
	informers.SharedInformerFactory
	start func()
}

func (l lifelong) Start(<-chan struct{})            { l.start() }
func (l lifelong) StartWithContext(context.Context) { l.start() }
