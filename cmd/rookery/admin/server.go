package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// Server answers /rookery/v1/. The caller has made sure that who asks is an
// administrator or a peer.
type Server struct {
	Self     string
	Address  func() string // where a machine that joins reaches this peer, host or host:port
	Status   func(context.Context) Status
	Peers    func() []PeerInfo
	Tokens   *cluster.Tokens
	Registry *cluster.Registry
	Images   Images
	// Remote tells how to reach a peer: the base of its URLs, and a client that presents
	// this peer's certificate and checks the other's.
	Remote func(peer string) (*url.URL, http.RoundTripper, error)
	Net    Net
	Log    *slog.Logger
}

// Handler returns the HTTP handler of s.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Prefix+"status", func(w http.ResponseWriter, r *http.Request) { s.reply(w, s.Status(r.Context()), nil) })
	mux.HandleFunc("GET "+Prefix+"peers", func(w http.ResponseWriter, _ *http.Request) { s.reply(w, s.Peers(), nil) })
	mux.HandleFunc("DELETE "+Prefix+"peers/{name}", s.removePeer)
	mux.HandleFunc("GET "+Prefix+"tokens", s.listTokens)
	mux.HandleFunc("POST "+Prefix+"tokens", s.createToken)
	mux.HandleFunc("DELETE "+Prefix+"tokens/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.reply(w, struct{}{}, s.Tokens.Revoke(r.Context(), r.PathValue("id")))
	})
	mux.HandleFunc("PUT "+Prefix+"network/backend/{kind}", s.setBackend)
	mux.HandleFunc("GET "+Prefix+"net/services/{namespace}/{name}", s.netService)
	mux.HandleFunc("GET "+Prefix+"net/check", s.netCheck)
	mux.HandleFunc("GET "+Prefix+"net/check/self", func(w http.ResponseWriter, r *http.Request) {
		s.reply(w, s.Net.Check(r.Context()), nil)
	})
	mux.HandleFunc("POST "+Prefix+"images", s.loadImage)
	mux.HandleFunc(Prefix+"debug/pprof/profile", pprof.Profile)
	mux.HandleFunc(Prefix+"debug/pprof/trace", pprof.Trace)
	mux.HandleFunc(Prefix+"debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		pprof.Handler(r.PathValue("name")).ServeHTTP(w, r)
	})
	return mux
}

func (s *Server) setBackend(w http.ResponseWriter, r *http.Request) {
	kind := r.PathValue("kind")
	if err := overlay.ValidKind(kind); err != nil {
		s.reply(w, nil, requestError(err.Error()))
		return
	}
	s.reply(w, struct{}{}, s.Registry.SetBackend(r.Context(), kind))
}

// peer asks another peer in this one's name.
func (s *Server) peer(name string) (*Client, error) {
	base, transport, err := s.Remote(name)
	if err != nil {
		return nil, err
	}
	return &Client{Base: base.String(), HTTP: &http.Client{Transport: transport}}, nil
}

// reply writes v, or the failure in the user's words.
func (s *Server) reply(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	if err != nil {
		v, code = failure{err.Error()}, statusOf(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Log.Debug("answer was not read", "err", err)
	}
}

func statusOf(err error) int {
	var noQuorum *raftstore.NoQuorumError
	var mistake requestError
	switch {
	case errors.As(err, &noQuorum):
		return http.StatusServiceUnavailable
	case errors.Is(err, cluster.ErrTokenUnknown), errors.Is(err, cluster.ErrNoPeer), apierrors.IsNotFound(err):
		return http.StatusNotFound
	case errors.As(err, &mistake):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// requestError is the caller's mistake, in their words.
type requestError string

func (e requestError) Error() string { return string(e) }

func (s *Server) removePeer(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	for _, p := range s.Peers() {
		if p.Name == name && p.State == Alive {
			s.reply(w, nil, requestError(name+" is alive: stop rookery on it first, then remove it"))
			return
		}
	}
	s.reply(w, struct{}{}, s.Registry.Remove(r.Context(), name))
}

func (s *Server) listTokens(w http.ResponseWriter, _ *http.Request) {
	tokens, err := s.Tokens.List()
	rows := []TokenInfo{}
	for _, t := range tokens {
		rows = append(rows, TokenInfo{ID: t.ID, Created: t.Created, Expires: t.Expires})
	}
	s.reply(w, rows, err)
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request) {
	ttl, err := time.ParseDuration(r.URL.Query().Get("expires"))
	if err != nil || ttl <= 0 {
		s.reply(w, nil, requestError("expires has to be a duration such as 24h"))
		return
	}
	t, err := s.Tokens.Create(r.Context(), ttl)
	if err != nil {
		s.reply(w, nil, err)
		return
	}
	now := time.Now()
	s.reply(w, TokenInfo{ID: t.ID, Created: now, Expires: now.Add(ttl), Token: t.String(), Address: s.Address()}, nil)
}
