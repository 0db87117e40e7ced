package customresources

import (
	"errors"
	"net/http"
	"strings"

	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// ServeHTTP answers requests under /apis/ that no built-in group takes: custom resources,
// and the discovery of their groups. All else is 404.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info, ok := request.RequestInfoFrom(r.Context())
	if !ok {
		a.fail(w, r, schema.GroupVersion{}, errors.New("the request has not been parsed"))
		return
	}
	if !info.IsResourceRequest {
		a.serveDiscovery(w, r, strings.Split(strings.Trim(info.Path, "/"), "/"))
		return
	}
	s, err := a.find(r.Context(), info.Resource+"."+info.APIGroup, info.APIVersion)
	switch {
	case err != nil:
		a.fail(w, r, schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}, err)
	case s == nil:
		notFound(w, r)
	default:
		s.handler.ServeHTTP(w, r)
	}
}

// fail answers with an error's Status. What is not the API's own error is logged.
func (a *API) fail(w http.ResponseWriter, r *http.Request, gv schema.GroupVersion, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		a.cfg.Logger.Error("custom resource request failed", "path", r.URL.Path, "err", err)
		err = apierrors.NewInternalError(err)
	}
	responsewriters.ErrorNegotiated(err, extensions.Codecs, gv, w, r)
}
