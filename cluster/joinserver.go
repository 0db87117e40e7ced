package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

// joinTimeout bounds one join on the server: two writes that need a quorum.
const joinTimeout = 15 * time.Second

// JoinHandler answers POST [JoinPath] on any peer. It only writes the peer's
// record: that the newcomer becomes a Raft server is the work of the leader,
// which reads the records (cluster/voters).
type JoinHandler struct {
	Identity *identity.Identity
	Registry *Registry
	Tokens   *Tokens
	// Current returns the address of a peer as gossip knows it now; false if
	// it does not. nil: the recorded addresses are told to the joiner.
	Current func(name string) (netip.Addr, bool)
	Log     *slog.Logger

	limit failureLimit
}

func (h *JoinHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "a peer joins by POST", http.StatusMethodNotAllowed)
		return
	}
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		h.refuse(w, r, "", fmt.Errorf("%w: remote address %q: %w", ErrJoinRequest, r.RemoteAddr, err))
		return
	}
	from := remote.Addr().Unmap()
	if !h.limit.allow(from, time.Now()) {
		h.refuse(w, r, "", ErrTooMany)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
	defer cancel()
	var req joinRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoinBytes))
	if err := dec.Decode(&req); err != nil {
		h.limit.failed(from, time.Now())
		h.refuse(w, r, "", fmt.Errorf("%w: %w", ErrJoinRequest, err))
		return
	}
	res, err := h.join(ctx, req, from)
	if err != nil {
		if c := classify(err); c.status == http.StatusUnauthorized {
			h.limit.failed(from, time.Now())
		}
		h.refuse(w, r, req.Name, err)
		return
	}
	h.Log.Info("peer joined", "peer", res.Peer.Name, "address", res.Peer.Address, "podCIDR", res.Peer.PodCIDR)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err := json.NewEncoder(w).Encode(res); err != nil {
		h.Log.Warn("join answer was not delivered; the peer may ask again", "peer", res.Peer.Name, "error", err)
	}
}

// join verifies the token before it looks at anything else.
func (h *JoinHandler) join(ctx context.Context, req joinRequest, from netip.Addr) (*joinResponse, error) {
	if err := h.Tokens.Verify(ctx, req.Token); err != nil {
		return nil, err
	}
	if !req.Address.IsValid() {
		req.Address = from
	}
	p, cert, err := h.admit(req)
	if err != nil {
		return nil, err
	}
	p, err = h.Registry.Register(ctx, p)
	if err != nil {
		return nil, err
	}
	bundle, err := h.Identity.Bundle(cert)
	if err != nil {
		return nil, err
	}
	peers, err := h.Registry.Peers()
	if err != nil {
		return nil, err
	}
	for i := range peers {
		if h.Current == nil {
			break
		}
		if a, ok := h.Current(peers[i].Name); ok && peers[i].Name != p.Name {
			peers[i].Address = a
		}
	}
	return &joinResponse{Bundle: *bundle, Peer: p, Peers: peers}, nil
}

// admit checks what the joiner says of itself and signs its certificate; the
// certificate is handed out only after the record stands.
func (h *JoinHandler) admit(req joinRequest) (Peer, []byte, error) {
	invalid := func(err error) (Peer, []byte, error) {
		return Peer{}, nil, fmt.Errorf("%w: %w", ErrJoinRequest, err)
	}
	if err := identity.ValidateName(req.Name); err != nil {
		return invalid(err)
	}
	pub, err := identity.ParseCSR(req.CSR)
	if err != nil {
		return invalid(err)
	}
	if _, err := wgtypes.ParseKey(req.WireGuardKey); err != nil {
		return invalid(fmt.Errorf("read WireGuard key: %w", err))
	}
	if req.Address.IsUnspecified() || req.Address.IsMulticast() {
		return invalid(fmt.Errorf("%s is not an address of a machine; give one with --advertise-address", req.Address))
	}
	if len(req.Version) > maxVersion {
		return invalid(errors.New("the version is too long"))
	}
	fp, err := identity.PublicFingerprint(pub)
	if err != nil {
		return invalid(err)
	}
	addr := req.Address.Unmap().WithZone("")
	cert, err := h.Identity.SignPeer(req.Name, pub, []netip.Addr{addr})
	if err != nil {
		return Peer{}, nil, err
	}
	p := Peer{Name: req.Name, Address: addr, Port: req.Port, GossipPort: req.GossipPort, WireGuardKey: req.WireGuardKey,
		Fingerprint: fp, Version: req.Version, Witness: req.Witness}
	if p.Port == 0 {
		p.Port = DefaultPort
	}
	if p.GossipPort == 0 {
		p.GossipPort = DefaultGossipPort
	}
	return p, cert, nil
}

func (h *JoinHandler) refuse(w http.ResponseWriter, r *http.Request, name string, err error) {
	c := classify(err)
	h.Log.Warn("join refused", "from", r.RemoteAddr, "peer", name, "code", c.code, "error", err)
	f := joinFailure{Code: c.code, Message: err.Error()}
	if c.code == "internal" {
		f.Message = "something is wrong on this side; see its log"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(c.status)
	if err := json.NewEncoder(w).Encode(f); err != nil {
		h.Log.Debug("join refusal was not delivered", "error", err)
	}
}
