package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

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

	"github.com/rundigitalplatform/rookery/apiserver/authentication"
)

// filter wraps a handler. Read from the bottom up it is the order in which a
// request passes; docs/design/api.md explains it.
func (s *Server) filter(h http.Handler, authn authenticator.Request, authz authorizer.Authorizer) http.Handler {
	h = s.withPatchCheck(h)
	h = filters.WithAuthorization(h, authz, s.codecs)
	h = impersonation.WithImpersonation(h, authz, s.codecs)
	h = s.withMaxInFlight(h)
	h = s.withAudit(h)
	h = filters.WithAuthentication(h, authn, s.unauthorized(), authenticator.Audiences{authentication.Issuer}, nil)
	h = filters.WithRequestDeadline(h, nil, nil, longRunning, s.codecs, s.cfg.RequestTimeout)
	h = s.withLifetime(h)
	h = s.withBodyLimit(h)
	h = withWarnings(h)
	h = filters.WithRequestInfo(h, requestInfo())
	h = filters.WithCacheControl(h)
	h = filters.WithRequestReceivedTimestamp(h)
	// Also without an audit log: warnings and audit annotations look for this context.
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
			w.Header().Set("Retry-After", "1")
			s.fail(w, r, apierrors.NewServiceUnavailable("this peer is shutting down"))
			return
		}
		defer s.requests.Done()
		if info, ok := request.RequestInfoFrom(r.Context()); ok && longRunning(r, info) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(s.life, cancel)()
			r = r.WithContext(ctx)
		} else {
			s.hurry(w)
		}
		h.ServeHTTP(w, r)
	})
}

// hurry cuts off a client that takes longer than a request may to send its body or
// to read the answer, so that slow ones hold no memory here. Watches and streams last as
// long as they like: a watcher that does not read is ended by the store, and a dead
// connection by its pings. The server ends the deadlines with the request, after it has
// read what the handlers left of the body.
func (s *Server) hurry(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	at := time.Now().Add(s.cfg.RequestTimeout * 7 / 6) // the answer of a request that timed out goes out too
	s.noDeadline(errors.Join(c.SetReadDeadline(at), c.SetWriteDeadline(at)))
}

// noDeadline notes that a connection has none; the call of a component in this process never has.
func (s *Server) noDeadline(err error) {
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.cfg.Logger.Debug("set deadline of a connection", "err", err)
	}
}

// withBodyLimit bounds what is read of a request's body; registries bound it
// too, this also covers everything that is not one. What nobody will read, of a watch
// or a log, is read here: over HTTP/1.1 the server does not notice that a client is gone
// while more of a body is left than the 256 KiB that it reads itself, and would go on for
// the half hour or hour that a watch lasts.
func (s *Server) withBodyLimit(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		switch {
		case !ok || r.Body == nil:
		case !longRunning(r, info):
			// One byte more, so that the registries' own limit answers first, with a Status.
			r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBodyBytes+1)
		case info.Verb == "watch" || info.Subresource == "log":
			c := http.NewResponseController(w)
			s.noDeadline(c.SetReadDeadline(time.Now().Add(s.cfg.RequestTimeout)))
			_, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, s.cfg.MaxBodyBytes))
			if err != nil {
				s.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("this request needs no body, and the one it has is not readable: %v", err)))
				return
			}
			s.noDeadline(c.SetReadDeadline(time.Time{}))
		}
		h.ServeHTTP(w, r)
	})
}

// withMaxInFlight bounds what a small machine does at once, and shares it among
// users; what finds no place in a second is refused with 429. Components of this
// process and administrators always get through.
func (s *Server) withMaxInFlight(h http.Handler) http.Handler {
	reads, writes := newTurns(s.cfg.MaxReads), newTurns(s.cfg.MaxWrites)
	readVerbs := sets.New("get", "list", "watch")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		u, known := request.UserFrom(r.Context())
		if !ok || longRunning(r, info) || isInProcess(r) || known && slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
			h.ServeHTTP(w, r)
			return
		}
		name := ""
		if known {
			name = u.GetName()
		}
		slots := writes
		if readVerbs.Has(info.Verb) {
			slots = reads
		}
		if !slots.take(r.Context(), name) {
			s.fail(w, r, apierrors.NewTooManyRequests("this peer is serving as many requests as it can, please try again", 1))
			return
		}
		defer slots.give(name)
		h.ServeHTTP(w, r)
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
