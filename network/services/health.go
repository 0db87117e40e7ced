package services

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"sigs.k8s.io/knftables"
)

// health is what a load balancer in front of the peers asks for: whether this one has
// endpoints of a Service whose external traffic stays on the peer.
type health struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// healthPorts answers on the healthCheckNodePorts, in the form of kube-proxy.
type healthPorts struct {
	log     *slog.Logger
	network string // "tcp4" or "tcp", of all families
	open    map[uint16]*healthPort
	died    func()          // called when a port that was open is not any more; any goroutine
	said    map[string]bool // about ports that could not be opened
}

type healthPort struct {
	server *http.Server
	state  atomic.Pointer[health]
	dead   atomic.Bool // the server has ended
}

// listenOn is the network to listen on in a cluster of these families.
func listenOn(families []Self) string {
	for _, f := range families {
		if f.family() != knftables.IPv4Family {
			return "tcp"
		}
	}
	return "tcp4"
}

// set makes want, by port, what is answered, and returns whether all of it is. A port that
// somebody else has is logged once for as long as that is so, and tried again by the next
// set; the other ports are not kept from their work.
func (h *healthPorts) set(want map[uint16]health) bool {
	for port, p := range h.open {
		if _, ok := want[port]; !ok || p.dead.Load() {
			p.close(h.log)
			delete(h.open, port)
		}
	}
	said := map[string]bool{}
	for port, state := range want {
		p, ok := h.open[port]
		if !ok {
			var err error
			if p, err = h.listen(port); err != nil {
				text := fmt.Sprintf("%s/%s: %v", state.Service.Namespace, state.Service.Name, err)
				if said[text] = true; !h.said[text] {
					h.log.Error("a health check port is not answered, trying again", "service", state.Service.Namespace+"/"+state.Service.Name, "error", err)
				}
				continue
			}
			h.open[port] = p
		}
		p.state.Store(&state)
	}
	h.said = said
	return len(said) == 0
}

func (h *healthPorts) close() {
	for port, p := range h.open {
		p.close(h.log)
		delete(h.open, port)
	}
}

func (h *healthPorts) listen(port uint16) (*healthPort, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), h.network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	p := &healthPort{}
	p.server = &http.Server{Handler: p, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 4 << 10}
	go func() {
		err := p.server.Serve(l)
		p.dead.Store(true)
		if !errors.Is(err, http.ErrServerClosed) {
			h.log.Error("health check port has ended", "port", port, "error", err)
			h.died()
		}
	}()
	return p, nil
}

func (p *healthPort) close(log *slog.Logger) {
	if err := p.server.Close(); err != nil {
		log.Warn("health check port did not close", "error", err)
	}
}

// ServeHTTP answers 200 if there are endpoints here, else 503.
func (p *healthPort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	state := p.state.Load()
	if state == nil {
		http.Error(w, "not known yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if state.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(state) // who asked is gone: nothing to be done
}
