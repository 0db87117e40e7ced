package apiserver

import (
	"context"
	"net/http"
	"runtime/debug"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"slices"
)

// filter wraps a handler. Read from the bottom up it is the order in which a
// request passes; docs/design/api.md explains it.
func (s *Server) filter(h http.Handler, authn authenticator.Request, authz authorizer.Authorizer) http.Handler {
	h = filters.WithAuthorization(h, authz, s.codecs)
	h = impersonation.WithImpersonation(h, authz, s.codecs)
	h = s.withMaxInFlight(h)
	h = filters.WithAuthentication(h, authn, filters.Unauthorized(s.codecs), authenticator.Audiences{Issuer}, nil)
	h = filters.WithRequestDeadline(h, nil, nil, longRunning, s.codecs, s.cfg.RequestTimeout)
	h = s.withLifetime(h)
	h = s.withBodyLimit(h)
	h = filters.WithWarningRecorder(h)
	h = filters.WithRequestInfo(h, requestInfo())
	h = filters.WithCacheControl(h)
	h = filters.WithRequestReceivedTimestamp(h)
	// Nothing is audited, but warnings and audit annotations look for this context.
	h = filters.WithAuditInit(h)
	return s.withPanicRecovery(h)
}

func requestInfo() request.RequestInfoResolver {
	return &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
}

// longRunning tells which requests last as long as their client wants.
func longRunning(_ *http.Request, i *request.RequestInfo) bool {
	switch {
	case i.Verb == "watch" || i.Verb == "proxy":
		return true
	case !i.IsResourceRequest:
		return false
	}
	return slices.Contains([]string{"exec", "attach", "log", "portforward", "proxy"}, i.Subresource)
}

func (s *Server) withPanicRecovery(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			switch {
			case p == nil:
			case p == http.ErrAbortHandler:
				panic(p) // the way to cut a connection; net/http expects it
			default:
				s.cfg.Logger.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, "this request has caused a panic; the peer's log says where", http.StatusInternalServerError)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// withLifetime ends watches and streams with the server, and lets Run wait for every request.
func (s *Server) withLifetime(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			s.fail(w, r, apierrors.NewServiceUnavailable("this peer is shutting down"))
			return
		}
		defer s.requests.Done()
		if info, ok := request.RequestInfoFrom(r.Context()); ok && longRunning(r, info) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(s.life, cancel)()
			r = r.WithContext(ctx)
		}
		h.ServeHTTP(w, r)
	})
}

// withBodyLimit bounds what is read of a request's body; registries bound it
// too, this also covers everything that is not one.
func (s *Server) withBodyLimit(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, ok := request.RequestInfoFrom(r.Context()); ok && !longRunning(r, info) && r.Body != nil {
			// One byte more, so that the registries' own limit answers first, with a Status.
			r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBodyBytes+1)
		}
		h.ServeHTTP(w, r)
	})
}

// withMaxInFlight refuses with 429 what is more than a small machine can do at
// once. Components of this process and administrators always get through.
func (s *Server) withMaxInFlight(h http.Handler) http.Handler {
	reads, writes := make(chan struct{}, s.cfg.MaxReads), make(chan struct{}, s.cfg.MaxWrites)
	readVerbs := sets.New("get", "list", "watch")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		u, known := request.UserFrom(r.Context())
		if !ok || longRunning(r, info) || isInProcess(r) || known && slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
			h.ServeHTTP(w, r)
			return
		}
		slots := writes
		if readVerbs.Has(info.Verb) {
			slots = reads
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			s.fail(w, r, apierrors.NewTooManyRequests("this peer is serving as many requests as it can, please try again", 1))
		}
	})
}

func isInProcess(r *http.Request) bool { return r.Context().Value(identityKey{}) != nil }

// fail answers with an error's Status in the form the client asked for.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	gv := schema.GroupVersion{Version: "v1"}
	if info, ok := request.RequestInfoFrom(r.Context()); ok && info.IsResourceRequest {
		gv = schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
	}
	responsewriters.ErrorNegotiated(err, s.codecs, gv, w, r)
}
