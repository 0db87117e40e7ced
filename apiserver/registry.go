package apiserver

import (
	"context"
	"errors"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/rundigitalplatform/rookery/apiserver/allocation"
)

// group is an API group as served.
type group struct {
	name     string
	versions []version // preferred first
}

type version struct {
	name      string
	resources resources
}

// resources are registries by resource or resource/subresource.
type resources map[string]rest.Storage

func v1(r resources) []version { return []version{{"v1", r}} }

// builder makes the registries of all groups. It keeps the first error, so that
// the long tables of registries read as tables.
type builder struct {
	options   generic.RESTOptionsGetter
	agents    agents
	proxy     http.RoundTripper // to pods and Services
	client    kubernetes.Interface
	tokens    serviceaccount.TokenGenerator
	addresses allocation.Families
	nodePorts *allocation.NodePorts
	authn     authenticator.Request
	authz     authorizer.Authorizer
	rules     authorizer.RuleResolver
	quorum    func(context.Context) error // see services
	// components are what componentstatuses shows.
	components func() map[string]componentstatus.Server

	bound *boundObjects // filled by core
	err   error
}

func (b *builder) note(err error) { b.err = errors.Join(b.err, err) }

func one[T any](b *builder, make func(generic.RESTOptionsGetter) (T, error)) T {
	v, err := make(b.options)
	b.note(err)
	return v
}

// withStatus adds a resource whose only subresource is its status.
func withStatus[R, S rest.Storage](b *builder, to resources, name string, make func(generic.RESTOptionsGetter) (R, S, error)) {
	r, status, err := make(b.options)
	b.note(err)
	to[name], to[name+"/status"] = r, status
}

// add merges resources.
func (r resources) add(more resources) {
	for name, s := range more {
		r[name] = s
	}
}
