package apiserver

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/kubernetes/pkg/probe"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
)

// Component is a part of the peer that /healthz asks whether it is well.
type Component struct {
	// Name is the path below /healthz, and the name in ?exclude=.
	Name string
	// Check returns what is wrong, nil if nothing is. It must answer within a second or so.
	Check func(*http.Request) error
}

// installHealth adds, each with its components below it, ?verbose and ?exclude=,
// as kube-apiserver has them: /livez, this process works, else restart it; /readyz,
// this peer's API may be asked, an island's too; /healthz, the whole peer is well.
func (s *Server) installHealth(mux *http.ServeMux) {
	ready := []healthz.HealthChecker{
		healthz.PingHealthz,
		healthz.NamedCheck("informer-sync", func(*http.Request) error {
			if err := s.Ready(); err != nil && !errors.Is(err, errClosing) {
				return err
			}
			return nil
		}),
		healthz.NewShutdownHealthz(s.life.Done()),
	}
	healthz.InstallLivezHandler(mux, healthz.PingHealthz)
	healthz.InstallReadyzHandler(mux, ready...)
	for _, c := range s.cfg.Components {
		ready = append(ready, healthz.NamedCheck(c.Name, c.Check))
	}
	healthz.InstallHandler(mux, ready...)
}

// componentServers is the same for componentstatuses, by the names of /healthz.
func (s *Server) componentServers() map[string]componentstatus.Server {
	out := map[string]componentstatus.Server{"api": checked{Check: func(*http.Request) error { return s.Ready() }}}
	for _, c := range s.cfg.Components {
		out[c.Name] = checked(c)
	}
	return out
}

// checked is a componentstatus.Server.
type checked Component

// checkTimeout bounds one check: a component answers within a second or so.
const checkTimeout = 5 * time.Second

func (c checked) DoServerCheck() (probe.Result, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/healthz/"+c.Name, nil)
	if err != nil {
		return probe.Unknown, "", err
	}
	if err := c.Check(r); err != nil {
		return probe.Failure, err.Error(), nil
	}
	return probe.Success, "ok", nil
}
