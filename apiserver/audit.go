package apiserver

import (
	"net/http"

	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/filters"
)

// Audit says what is written down of which requests, and where.
type Audit struct {
	Policy audit.PolicyRuleEvaluator
	// Backend may be called concurrently; it is not run or shut down here.
	Backend audit.Backend
}

// withAudit stands between authentication and everything that can refuse a request.
// Without Config.Audit it is h.
func (s *Server) withAudit(h http.Handler) http.Handler {
	if s.cfg.Audit == nil {
		return h
	}
	return filters.WithAudit(h, s.cfg.Audit.Backend, s.cfg.Audit.Policy, longRunning)
}

// unauthorized answers 401, which is audited too.
func (s *Server) unauthorized() http.Handler {
	h := filters.Unauthorized(s.codecs)
	if s.cfg.Audit == nil {
		return h
	}
	return filters.WithFailedAuthenticationAudit(h, s.cfg.Audit.Backend, s.cfg.Audit.Policy)
}
