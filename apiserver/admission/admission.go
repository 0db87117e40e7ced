// Package admission is what a write passes between authorization and the registry: the
// plugins of kube-apiserver in its order, the four kinds of hooks that users register, and
// three plugins of our own. docs/design/admission.md says which are on and why.
package admission

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	quota "k8s.io/apiserver/pkg/quota/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/compatibility"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/approval"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/ctbattest"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/signing"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/subjectrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/limitranger"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/nodetaint"
	"k8s.io/kubernetes/plugin/pkg/admission/podresize"
	"k8s.io/kubernetes/plugin/pkg/admission/podtolerationrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/podtopologylabels"
	"k8s.io/kubernetes/plugin/pkg/admission/priority"
	"k8s.io/kubernetes/plugin/pkg/admission/runtimeclass"
	"k8s.io/kubernetes/plugin/pkg/admission/security/podsecurity"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/persistentvolume/resize"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageclass/setdefault"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Config is what the plugins are made from. All fields but StartInformers and Quorum,
// which are functions, are used when the chain is made; all are required.
type Config struct {
	// Client asks the API as one of its own components; Objects makes a client for kinds
	// that are known by name only.
	Client  kubernetes.Interface
	Objects func() (dynamic.Interface, error)
	// Informers are shared by all plugins. StartInformers starts those that were asked
	// for since it was called last.
	Informers      informers.SharedInformerFactory
	StartInformers func()
	Authorizer     authorizer.Authorizer
	// Store has what users register under Prefix ("/registry"). Quorum waits until it is
	// as new as the cluster's state, and returns an API error.
	Store  raftstore.Store
	Prefix string
	Quorum func(context.Context) error
	// Services finds the addresses of the Services that webhooks name.
	Services webhook.ServiceResolver
	// UnreachableSeconds is how long a pod tolerates a peer that is gone, where it does
	// not say so itself.
	UnreachableSeconds int64
	KubernetesVersion  string
	// Life ends goroutines and informers.
	Life context.Context
}

// New builds Kubernetes' own plugins in kube-apiserver's order, and ours where the stock
// ones would let through what harms here. Those that ask what users have registered
// sleep until there is something to ask.
func New(cfg Config) (admission.Interface, error) {
	ask := &hooks{Config: cfg}
	plugins := admission.NewPlugins()
	registerQuantityRange(plugins)
	lifecycle.Register(plugins)
	limitranger.Register(plugins)
	serviceaccount.Register(plugins)
	noderestriction.Register(plugins)
	nodetaint.Register(plugins)
	podsecurity.Register(plugins)
	priority.Register(plugins)
	plugins.Register(defaulttolerationseconds.PluginName, func(io.Reader) (admission.Interface, error) {
		return newTolerations(cfg.UnreachableSeconds)
	})
	registerTolerations(plugins)
	approval.Register(plugins)
	signing.Register(plugins)
	ctbattest.Register(plugins)
	subjectrestriction.Register(plugins)
	registerPeerSubject(plugins)
	setdefault.Register(plugins)
	resize.Register(plugins)
	defaultingressclass.Register(plugins)
	podtopologylabels.Register(plugins)
	podresize.Register(plugins)
	resourcequota.Register(plugins)
	ask.register(plugins)
	order := []string{ // kube-apiserver's; docs/design/admission.md has what is left out
		quantityRangeName,
		lifecycle.PluginName,
		limitranger.PluginName,
		serviceaccount.PluginName,
		noderestriction.PluginName,
		nodetaint.PluginName,
		podsecurity.PluginName,
		priority.PluginName,
		defaulttolerationseconds.PluginName,
		podtolerationrestriction.PluginName,
		setdefault.PluginName,
		resize.PluginName,
		runtimeclass.PluginName,
		approval.PluginName,
		signing.PluginName,
		ctbattest.PluginName,
		subjectrestriction.PluginName,
		peerSubjectName,
		defaultingressclass.PluginName,
		podtopologylabels.PluginName,
		podresize.PluginName,
		mutatingpolicy.PluginName,
		mutatingwebhook.PluginName,
		validatingpolicy.PluginName,
		validatingwebhook.PluginName,
		resourcequota.PluginName,
	}

	quotas, err := quotainstall.NewQuotaConfigurationForAdmission(cfg.Informers, servedForQuota{})
	if err != nil {
		return nil, fmt.Errorf("build quota evaluators: %w", err)
	}
	config, err := admission.ReadAdmissionConfiguration(nil, "", nil)
	if err != nil {
		return nil, fmt.Errorf("build admission configuration: %w", err)
	}
	chain, err := plugins.NewFromPlugins(order, config, admission.PluginInitializers{
		initializer.New(cfg.Client, nil, cfg.Informers, cfg.Authorizer, utilfeature.DefaultFeatureGate, compatibility.NewEffectiveVersionFromString(cfg.KubernetesVersion, "", ""), cfg.Life.Done(), nil),
		quotaInitializer{quotas},
	}, admission.Decorators{})
	if err != nil {
		return nil, fmt.Errorf("build admission plugins: %w", err)
	}
	return chain, nil
}

// newTolerations is the stock plugin with our seconds for a peer that is gone. One that
// is there but not ready, as while its Podman is restarted, still runs its pods:
// upstream's 300 seconds. The plugin's defaults live in flag variables.
func newTolerations(seconds int64) (admission.Interface, error) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	defaulttolerationseconds.RegisterFlags(flags)
	if err := flags.Set("default-unreachable-toleration-seconds", strconv.FormatInt(seconds, 10)); err != nil {
		return nil, fmt.Errorf("set default toleration seconds: %w", err)
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
