package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

// JoinOptions is what a machine says of itself when it joins.
type JoinOptions struct {
	Dir  string // the data directory that the identity goes to
	Name string
	// Address is where other peers reach this machine; zero: the address from
	// which it reaches the host it joins.
	Address    netip.Addr
	Port       uint16 // 0: [DefaultPort]
	GossipPort uint16 // 0: [DefaultGossipPort]
	Version    string
	Witness    bool
}

// Joined is what a join gives: the identity, which is on disk, and the records.
type Joined struct {
	Identity *identity.Identity
	Self     Peer
	Peers    []Peer
}

// ParseHost reads the HOST of --join: a name or an address, with a port or without ([DefaultPort]).
func ParseHost(s string) (string, error) {
	bad := fmt.Errorf("%q is not a host to join: give a name or an address, with a port if it is not %d, for example 192.168.1.10 or peer1:%d",
		s, DefaultPort, DefaultPort)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(a.String(), strconv.Itoa(DefaultPort)), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(DefaultPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", bad
	}
	if _, err := netip.ParseAddr(host); err != nil && (host == "" || strings.ContainsAny(host, "/:@ \t\n")) {
		return "", bad
	}
	return net.JoinHostPort(host, port), nil
}

// Join makes this machine a peer of the cluster that host (see [ParseHost]) and
// token name. The other side is believed only if its certificate is of the CA that the
// token pins. On success the identity and the known peers are in o.Dir; on any
// failure nothing of the kind is there, and the same join can be repeated: it is
// then the same peer with the same share of the pod network.
//
// Errors: [ErrTokenMalformed] and [ErrTokenForeign] before anything secret is
// sent, a [*JoinError] if the other side refuses.
func Join(ctx context.Context, host, token string, o JoinOptions) (*Joined, error) {
	tok, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	addr, err := ParseHost(host)
	if err != nil {
		return nil, err
	}
	if err := identity.ValidateName(o.Name); err != nil {
		return nil, err
	}
	if ok, err := identity.Exists(o.Dir); err != nil {
		return nil, fmt.Errorf("look for an identity in %s: %w", o.Dir, err)
	} else if ok {
		return nil, fmt.Errorf("%s holds an identity already: start it without --join, or use another data directory with --data-dir", o.Dir)
	}
	keys, err := identity.NewRequest(o.Dir)
	if err != nil {
		return nil, err
	}
	csr, err := keys.CSR(o.Name)
	if err != nil {
		return nil, err
	}
	conn, err := dialPinned(ctx, addr, tok.Pin)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if !o.Address.IsValid() {
		o.Address = localAddr(conn)
	}
	res, err := postJoin(ctx, conn, addr, joinRequest{Token: tok.String(), Name: o.Name, Address: o.Address, Port: o.Port,
		GossipPort: o.GossipPort, CSR: csr, WireGuardKey: keys.WireGuardKey(), Version: o.Version, Witness: o.Witness})
	if err != nil {
		return nil, err
	}
	// First the peers, then the identity: once the identity is there, the next
	// `up` resumes with it, and must know whom to ask.
	if err := saveKnown(o.Dir, knownOf(res.Peers, o.Name)); err != nil {
		return nil, err
	}
	id, err := keys.Adopt(&res.Bundle)
	if err != nil {
		return nil, err
	}
	return &Joined{Identity: id, Self: res.Peer, Peers: res.Peers}, nil
}

func localAddr(c net.Conn) netip.Addr {
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func dialPinned(ctx context.Context, addr string, pin [identity.PinSize]byte) (net.Conn, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second},
		Config: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			NextProtos:         []string{"http/1.1"},
			InsecureSkipVerify: true, // VerifyConnection does better than names and dates
			VerifyConnection:   func(cs tls.ConnectionState) error { return identity.VerifyPinned(&cs, pin) },
		},
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	switch {
	case errors.Is(err, identity.ErrPin), errors.Is(err, identity.ErrNotPeer):
		return nil, fmt.Errorf("join %s: %w", addr, ErrTokenForeign)
	case err != nil:
		return nil, fmt.Errorf("join %s: %w; is Rookery running there, and is port %s open between the two machines?", addr, err, addr[strings.LastIndexByte(addr, ':')+1:])
	}
	return conn, nil
}

// postJoin speaks HTTP on the one connection that has been verified.
func postJoin(ctx context.Context, conn net.Conn, addr string, req joinRequest) (*joinResponse, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode join request: %w", err)
	}
	used := false
	tr := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the connection was lost")
		}
		used = true
		return conn, nil
	}}
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 2*joinTimeout)
	defer cancel()
	hreq, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+JoinPath, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", addr, err)
	}
	hreq.Header.Set("Content-Type", "application/json")
	hres, err := tr.RoundTrip(hreq)
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", addr, err)
	}
	defer hres.Body.Close()
	data, err := io.ReadAll(io.LimitReader(hres.Body, maxBundleBytes))
	if err != nil {
		return nil, fmt.Errorf("join %s: read answer: %w", addr, err)
	}
	if hres.StatusCode != http.StatusOK {
		f := joinFailure{Code: "internal", Message: hres.Status}
		if err := json.Unmarshal(data, &f); err != nil || f.Message == "" {
			f.Message = hres.Status // not ours: a proxy's, or an older version's
		}
		return nil, &JoinError{Host: addr, Code: f.Code, Message: f.Message}
	}
	var res joinResponse
	if err := json.Unmarshal(data, &res); err != nil {
		return nil, fmt.Errorf("join %s: read answer: %w", addr, err)
	}
	return &res, nil
}
