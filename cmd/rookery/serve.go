package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/cluster"
)

// adminGroup may use rookery's own API, as it may use all of the Kubernetes API.
const adminGroup = "system:masters"

// serve answers HTTP on the peer port until ctx ends.
func (p *peer) serve(ctx context.Context) error {
	srv := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(p.log.With("room", "http").Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(p.port.API()) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	// Watches and streams end with the API; what is left is cut after two seconds.
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		err = srv.Close()
		<-ended
		return err
	}
	<-ended
	return nil
}

// handler divides the port's HTTP among who answers it. It is no ServeMux,
// which would redirect paths that it thinks unclean; the API has its own view of them.
func (p *peer) handler() http.Handler {
	join := &cluster.JoinHandler{
		Identity: p.id, Registry: p.registry, Tokens: p.tokens, Log: p.log.With("room", "cluster"), Current: p.currentAddress,
	}
	agent := p.peersOnly(p.agent.Handler())
	proxied := http.StripPrefix(apiserver.AgentPath, agent) // of the node proxy, which leads nowhere else
	own, api := p.trusted(p.admin().Handler()), p.api.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); first {
		case "rookery":
			if r.URL.Path == cluster.JoinPath {
				join.ServeHTTP(w, r)
				return
			}
			own.ServeHTTP(w, r)
		case "containerLogs", "exec", "attach", "portForward", "usage":
			agent.ServeHTTP(w, r)
		case strings.TrimPrefix(apiserver.AgentPath, "/"):
			proxied.ServeHTTP(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	})
}

// currentAddress is where gossip says that a peer is now.
func (p *peer) currentAddress(name string) (netip.Addr, bool) {
	m, ok := p.members.Member(name)
	return m.Address, ok && m.Address.IsValid()
}

// peersOnly lets in peers: the API of the peer that was asked has authorized the user.
func (p *peer) peersOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := p.port.VerifyPeer(r.TLS); err != nil {
			http.Error(w, "only peers of this cluster may ask this: "+err.Error(), http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// trusted lets in peers and administrators.
func (p *peer) trusted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := p.port.VerifyPeer(r.TLS); err != nil {
			if err := p.verifyAdmin(r.TLS); err != nil {
				http.Error(w, "this needs an administrator's certificate: "+err.Error(), http.StatusForbidden)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

func (p *peer) verifyAdmin(cs *tls.ConnectionState) error {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate was shown")
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: p.id.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	if !slices.Contains(leaf.Subject.Organization, adminGroup) {
		return errors.New("the certificate is of " + leaf.Subject.CommonName + ", who is not in " + adminGroup)
	}
	return nil
}
