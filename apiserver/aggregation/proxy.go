package aggregation

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/endpoints/request"
	apiserverproxy "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/transport"
	"k8s.io/streaming/pkg/httpstream"
)

// Handler answers what extension servers serve, and leaves all else to next: built-in
// groups, custom resources, and what nobody serves.
func (a *Aggregator) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := a.table.Load()
		if len(t.routes) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		rest, ok := strings.CutPrefix(r.URL.Path, "/apis")
		parts := strings.SplitN(strings.Trim(rest, "/"), "/", 3)
		switch {
		case !ok || parts[0] == "":
			if ok && strings.Contains(r.Header.Get("Accept"), "APIGroupDiscoveryList") {
				a.refresh(r.Context(), t)
			}
		case len(parts) == 1:
			if a.serveGroup(w, r, parts[0]) {
				return
			}
		default:
			if to := t.routes[schema.GroupVersion{Group: parts[0], Version: parts[1]}]; to != nil && (to.available() || !to.builtin) {
				a.forward(w, r, to)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// forward hands a request on in the name of its user, whom the filters have
// authenticated and authorized. It is kube-aggregator's way.
func (a *Aggregator) forward(w http.ResponseWriter, r *http.Request, to *route) {
	who, ok := request.UserFrom(r.Context())
	if !ok {
		a.cfg.Fail(w, r, apierrors.NewInternalError(errors.New("nobody is asking")))
		return
	}
	location, err := a.locate(to)
	if err != nil {
		a.cfg.Fail(w, r, to.unavailable(err))
		return
	}
	location.Path, location.RawQuery = r.URL.Path, r.URL.Query().Encode()
	onward, cancel := apiserverproxy.NewRequestForProxy(location, r)
	defer cancel()

	way, upgrade := to.way, httpstream.IsUpgradeRequest(r)
	if upgrade {
		// Such a connection is dialled apart, past the round tripper.
		transport.SetAuthProxyHeaders(onward, who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra())
	}
	way = transport.NewAuthProxyRoundTripper(who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra(), way)
	h := proxy.NewUpgradeAwareHandler(location, way, true, upgrade, &answerer{a, to})
	h.RejectForwardingRedirects = true
	h.ServeHTTP(w, onward)
}

// locate is where an extension server is now, as a URL without a path.
func (a *Aggregator) locate(to *route) (*url.URL, error) {
	switch {
	case !to.available():
		return nil, errors.New(to.why)
	case to.noWay != nil:
		return nil, to.noWay
	}
	port := int32(443)
	if to.spec.Service.Port != nil {
		port = *to.spec.Service.Port
	}
	at, err := a.cfg.Resolver.ResolveEndpoint(to.spec.Service.Namespace, to.spec.Service.Name, port)
	if err != nil {
		return nil, err
	}
	return &url.URL{Scheme: "https", Host: at.Host}, nil
}

func (r *route) unavailable(why error) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("%s is served by Service %s/%s, which is not available: %v", r.gv, r.spec.Service.Namespace, r.spec.Service.Name, why))
}

// answerer answers for a server that does not.
type answerer struct {
	a  *Aggregator
	to *route
}

// Error implements [proxy.ErrorResponder].
func (e *answerer) Error(w http.ResponseWriter, r *http.Request, err error) {
	e.a.cfg.Fail(w, r, e.to.unavailable(err))
}
