package apiserver

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authgroup "k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// openPaths are answered to anybody, so that a balancer or a person without
// credentials can see whether this peer is well.
func openPaths() []string { return []string{"/livez", "/readyz", "/healthz", "/version"} }

// newAuthenticator tells who is calling: a component of this process, the
// holder of a client certificate, or a service account. A wrong token or
// certificate is refused; it never becomes an anonymous caller.
func newAuthenticator(cfg Config, bound serviceaccount.ServiceAccountTokenGetter) (authenticator.Request, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{cfg.TokenKey.Public()})
	if err != nil {
		return nil, fmt.Errorf("read service account public key: %w", err)
	}
	tokens := serviceaccount.JWTTokenAuthenticator([]string{Issuer}, keys, authenticator.Audiences{Issuer}, serviceaccount.NewValidator(bound))
	// 10 s, as kube-apiserver: a deleted pod's token may work that much longer.
	tokens = tokencache.New(tokens, false, 10*time.Second, 0)

	known := []authenticator.Request{authenticator.RequestFunc(inProcessIdentity)}
	if cfg.ClientCAs != nil {
		known = append(known, &certificates{roots: cfg.ClientCAs, revoked: cfg.Revoked})
	}
	known = append(known, bearertoken.New(tokens))

	open := make([]apiserver.AnonymousAuthCondition, 0, 4)
	for _, p := range openPaths() {
		open = append(open, apiserver.AnonymousAuthCondition{Path: p})
	}
	return union.NewFailOnError(
		authgroup.NewAuthenticatedGroupAdder(union.NewFailOnError(known...)),
		anonymous.NewAuthenticator(open),
	), nil
}

// certificates authenticates by TLS client certificate.
type certificates struct {
	roots   *x509.CertPool
	revoked func(*x509.Certificate) bool // nil: none is
}

func (c *certificates) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Intermediates: x509.NewCertPool()}
	for _, i := range r.TLS.PeerCertificates[1:] {
		opts.Intermediates.AddCert(i)
	}
	if slices.Contains(leaf.Subject.Organization, user.NodesGroup) {
		// A board without a battery-backed clock boots in 1970: among peers only the chain counts.
		opts.CurrentTime = leaf.NotBefore
		if c.revoked != nil && c.revoked(leaf) {
			return nil, false, fmt.Errorf("the peer %q has been removed from the cluster", leaf.Subject.CommonName)
		}
	}
	chains, err := leaf.Verify(opts)
	if err != nil {
		return nil, false, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return x509request.CommonNameUserConversion(chains[0])
}
