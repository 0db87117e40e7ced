package apiserver

import (
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	kubelet "k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
	configmap "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	endpoints "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	event "k8s.io/kubernetes/pkg/registry/core/event/storage"
	limitrange "k8s.io/kubernetes/pkg/registry/core/limitrange/storage"
	namespace "k8s.io/kubernetes/pkg/registry/core/namespace/storage"
	node "k8s.io/kubernetes/pkg/registry/core/node/storage"
	volume "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	claim "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	pod "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplate "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	controller "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	resourcequota "k8s.io/kubernetes/pkg/registry/core/resourcequota/storage"
	secret "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	svcregistry "k8s.io/kubernetes/pkg/registry/core/service"
	service "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccount "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"

	"github.com/rundigitalplatform/rookery/apiserver/allocation"
	"github.com/rundigitalplatform/rookery/apiserver/authentication"
)

const (
	// eventTTL is how long events are kept, in seconds: kube-apiserver's hour.
	eventTTL = 3600
	// maxTokenLife bounds what a TokenRequest may ask for: a day.
	maxTokenLife = 24 * time.Hour
)

// core builds group "" and, since they are the same registry, returns the
// events for group events.k8s.io.
func (b *builder) core() (resources, rest.Storage) {
	events, err := event.NewREST(b.options, eventTTL)
	b.note(err)
	secrets := one(b, secret.NewREST)
	all := resources{
		"componentstatuses": componentstatus.NewStorage(b.components),
		"configmaps":        one(b, configmap.NewREST),
		"endpoints":         one(b, endpoints.NewREST),
		"events":            events,
		"limitranges":       one(b, limitrange.NewREST),
		"podtemplates":      one(b, podtemplate.NewREST),
		"secrets":           secrets,
	}
	ns, nsStatus, nsFinalize, err := namespace.NewREST(b.options)
	b.note(err)
	all.add(resources{"namespaces": ns, "namespaces/status": nsStatus, "namespaces/finalize": nsFinalize})
	withStatus(b, all, "resourcequotas", resourcequota.NewREST)
	withStatus(b, all, "persistentvolumes", volume.NewREST)
	withStatus(b, all, "persistentvolumeclaims", claim.NewREST)

	rc, err := controller.NewStorage(b.options)
	b.note(err)
	all.add(resources{"replicationcontrollers": rc.Controller, "replicationcontrollers/status": rc.Status, "replicationcontrollers/scale": rc.Scale})

	// The addresses of this configuration are never used: agents are found by b.agents.
	nodes, err := node.NewStorage(b.options, kubelet.KubeletClientConfig{Port: 10250, PreferredAddressTypes: []string{string(api.NodeInternalIP)}}, b.proxy)
	b.note(err)
	pods, err := pod.NewStorage(b.options, b.agents, b.proxy, b.client.PolicyV1(), b.authz)
	b.note(err)
	if b.err != nil {
		return nil, nil
	}
	nodes.Proxy.Connection = b.agents
	all.add(resources{
		"nodes": nodes.Node, "nodes/status": nodes.Status, "nodes/proxy": &nodeProxy{nodes.Proxy, b.agents},
		"bindings": pods.LegacyBinding,
		"pods":     pods.Pod, "pods/status": pods.Status, "pods/binding": pods.Binding, "pods/eviction": pods.Eviction,
		"pods/ephemeralcontainers": pods.EphemeralContainers, "pods/resize": pods.Resize,
		"pods/log": pods.Log, "pods/exec": pods.Exec, "pods/attach": pods.Attach, "pods/portforward": pods.PortForward, "pods/proxy": pods.Proxy,
	})

	accounts, err := serviceaccount.NewREST(b.options, b.tokens, []string{authentication.Issuer}, b.authz, maxTokenLife, pods.Pod.Store, secrets, nodes.Node.Store,
		b.client.AdmissionregistrationV1().ValidatingWebhookConfigurations(), b.client.AdmissionregistrationV1().MutatingWebhookConfigurations(), false, 0)
	b.note(err)
	if b.err != nil {
		return nil, nil
	}
	all.add(resources{"serviceaccounts": accounts, "serviceaccounts/token": accounts.Token})
	b.bound.serviceAccounts, b.bound.pods, b.bound.secrets, b.bound.nodes = accounts, pods.Pod, secrets, nodes.Node

	all.add(b.services(pods, b.proxy))
	return all, events
}

func (b *builder) services(pods pod.PodStorage, proxy http.RoundTripper) resources {
	registry := func(from allocation.Families) (*service.REST, *service.StatusREST, *svcregistry.ProxyREST, error) {
		return service.NewREST(b.options, from[0].IPFamily(), from.Allocators(), b.nodePorts, endpointSlices{b.client}, pods.Pod, proxy)
	}
	svc, status, svcProxy, err := registry(b.addresses)
	b.note(err)
	if b.err != nil {
		return nil
	}
	allocateFor(svc, func(namespace, name string) (*service.REST, error) {
		own, _, _, err := registry(b.addresses.For(namespace, name))
		return own, err
	})
	return resources{"services": &services{REST: svc, quorum: b.quorum}, "services/status": status, "services/proxy": svcProxy}
}
