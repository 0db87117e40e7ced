package apiserver

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	"k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	quota "k8s.io/apiserver/pkg/quota/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/limitranger"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/nodetaint"
	"k8s.io/kubernetes/plugin/pkg/admission/priority"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageclass/setdefault"
)

// newAdmission builds Kubernetes' own plugins in kube-apiserver's order.
// stop ends the goroutines of the quota evaluator.
func newAdmission(cfg Config, client kubernetes.Interface, factory informers.SharedInformerFactory, authz authorizer.Authorizer, stop <-chan struct{}) (admission.Interface, error) {
	plugins := admission.NewPlugins()
	lifecycle.Register(plugins)
	limitranger.Register(plugins)
	serviceaccount.Register(plugins)
	nodetaint.Register(plugins)
	priority.Register(plugins)
	plugins.Register(defaulttolerationseconds.PluginName, func(io.Reader) (admission.Interface, error) {
		return newTolerations(cfg.TolerationSeconds)
	})
	setdefault.Register(plugins)
	defaultingressclass.Register(plugins)
	resourcequota.Register(plugins)
	order := []string{
		lifecycle.PluginName, limitranger.PluginName, serviceaccount.PluginName, nodetaint.PluginName, priority.PluginName,
		defaulttolerationseconds.PluginName, setdefault.PluginName, defaultingressclass.PluginName, resourcequota.PluginName,
	}

	quotas, err := quotainstall.NewQuotaConfigurationForAdmission(factory, servedForQuota{})
	if err != nil {
		return nil, fmt.Errorf("build quota evaluators: %w", err)
	}
	config, err := admission.ReadAdmissionConfiguration(nil, "", nil)
	if err != nil {
		return nil, fmt.Errorf("build admission configuration: %w", err)
	}
	chain, err := plugins.NewFromPlugins(order, config, admission.PluginInitializers{
		initializer.New(client, nil, factory, authz, utilfeature.DefaultFeatureGate, nil, stop, nil),
		quotaInitializer{quotas},
	}, admission.Decorators{})
	if err != nil {
		return nil, fmt.Errorf("build admission plugins: %w", err)
	}
	return chain, nil
}

// newTolerations is the stock plugin with our seconds. Its defaults live in
// flag variables that InspectFeatureGates copies, so they are set just before.
func newTolerations(seconds int64) (admission.Interface, error) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	defaulttolerationseconds.RegisterFlags(flags)
	for _, f := range []string{"default-not-ready-toleration-seconds", "default-unreachable-toleration-seconds"} {
		if err := flags.Set(f, strconv.FormatInt(seconds, 10)); err != nil {
			return nil, fmt.Errorf("set default toleration seconds: %w", err)
		}
	}
	return defaulttolerationseconds.NewDefaultTolerationSeconds(), nil
}

// quotaInitializer hands the evaluators to the quota plugin.
type quotaInitializer struct{ quota.Configuration }

func (q quotaInitializer) Initialize(p admission.Interface) {
	if w, ok := p.(initializer.WantsQuotaConfiguration); ok {
		w.SetQuotaConfiguration(q.Configuration)
	}
}

// servedForQuota keeps the evaluators from asking for informers of kinds that are not served.
type servedForQuota struct{}

func (servedForQuota) AnyResourceForGroupEnabled(group string) bool {
	return group != "resource.k8s.io"
}
func (s servedForQuota) ResourceEnabled(r schema.GroupVersionResource) bool {
	return s.AnyResourceForGroupEnabled(r.Group)
}
func (s servedForQuota) ResourceExplicitlyEnabled(r schema.GroupVersionResource) bool {
	return s.AnyResourceForGroupEnabled(r.Group)
}
func (s servedForQuota) VersionExplicitlyEnabled(v schema.GroupVersion) bool {
	return s.AnyResourceForGroupEnabled(v.Group)
}
