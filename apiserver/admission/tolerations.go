package admission

import (
	"context"
	"io"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	restriction "k8s.io/kubernetes/plugin/pkg/admission/podtolerationrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/podtolerationrestriction/apis/podtolerationrestriction"
)

// tolerations is Kubernetes' PodTolerationRestriction for the namespaces that say
// what is tolerated in them, by its annotations. Upstream has the plugin off,
// because it gives every pod a toleration; here it is not asked about the others.
type tolerations struct {
	*restriction.Plugin
	namespaces corelisters.NamespaceLister
}

func registerTolerations(plugins *admission.Plugins) {
	plugins.Register(restriction.PluginName, func(io.Reader) (admission.Interface, error) {
		return &tolerations{Plugin: restriction.NewPodTolerationsPlugin(&podtolerationrestriction.Configuration{})}, nil
	})
}

// SetExternalKubeInformerFactory shares the informer of namespaces, which admission has anyway.
func (p *tolerations) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	p.namespaces = f.Core().V1().Namespaces().Lister()
	p.Plugin.SetExternalKubeInformerFactory(f)
}

func (p *tolerations) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if !p.wanted(a.GetNamespace()) {
		return nil
	}
	return p.Plugin.Admit(ctx, a, o)
}

func (p *tolerations) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if !p.wanted(a.GetNamespace()) {
		return nil
	}
	return p.Plugin.Validate(ctx, a, o)
}

// wanted: a namespace that is not known here yet has nothing to say yet; who annotates
// one waits a moment before making pods, as upstream.
func (p *tolerations) wanted(namespace string) bool {
	ns, err := p.namespaces.Get(namespace)
	if err != nil {
		return false
	}
	_, defaults := ns.Annotations[restriction.NSDefaultTolerations]
	_, allowed := ns.Annotations[restriction.NSWLTolerations]
	return defaults || allowed
}
