package authentication

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	// rememberCertificate: a connection's requests show the same certificate, and
	// its signature is a tenth of a small request's cost. The dates are looked at
	// again after that.
	rememberCertificate = time.Minute
	// mostCertificates bounds what is remembered: more users at once only pay more.
	mostCertificates = 256
)

// certificates authenticates by TLS client certificate.
type certificates struct {
	roots   *x509.CertPool
	revoked func(*x509.Certificate) bool // nil: none is

	mu    sync.Mutex
	known map[[sha256.Size]byte]verified
}

// verified is a certificate chain that was found good.
type verified struct {
	until time.Time
	resp  *authenticator.Response
}

func newCertificates(roots *x509.CertPool, revoked func(*x509.Certificate) bool) *certificates {
	return &certificates{roots: roots, revoked: revoked, known: map[[sha256.Size]byte]verified{}}
}

func (c *certificates) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	isPeer := slices.Contains(leaf.Subject.Organization, user.NodesGroup)
	if isPeer && c.revoked != nil && c.revoked(leaf) {
		return nil, false, fmt.Errorf("the peer %q has been removed from the cluster", leaf.Subject.CommonName)
	}
	h := sha256.New()
	for _, cert := range r.TLS.PeerCertificates {
		h.Write(cert.Raw)
	}
	key, now := [sha256.Size]byte(h.Sum(nil)), time.Now()
	c.mu.Lock()
	seen := c.known[key]
	c.mu.Unlock()
	if now.Before(seen.until) {
		return seen.resp, true, nil
	}
	resp, ok, err := c.verify(r.TLS.PeerCertificates, isPeer)
	if !ok || err != nil {
		return nil, false, err
	}
	until := now.Add(rememberCertificate)
	if !isPeer && leaf.NotAfter.Before(until) {
		until = leaf.NotAfter
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= mostCertificates {
		clear(c.known)
	}
	c.known[key] = verified{until, resp}
	return resp, true, nil
}

func (c *certificates) verify(chain []*x509.Certificate, isPeer bool) (*authenticator.Response, bool, error) {
	leaf := chain[0]
	opts := x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Intermediates: x509.NewCertPool()}
	for _, i := range chain[1:] {
		opts.Intermediates.AddCert(i)
	}
	if isPeer {
		// A board without a battery-backed clock boots in 1970: among peers only the chain counts.
		opts.CurrentTime = leaf.NotBefore
	}
	chains, err := leaf.Verify(opts)
	if err != nil {
		return nil, false, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return x509request.CommonNameUserConversion(chains[0])
}
