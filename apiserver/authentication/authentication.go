// Package authentication tells who calls the API.
package authentication

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authgroup "k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// Config says who is known.
type Config struct {
	// Life is that of the API.
	Life context.Context
	// Components authenticates those of this process. Required.
	Components authenticator.Request
	// ClientCAs verifies client certificates; nil: there are none. Revoked tells whether a
	// peer's is refused nevertheless; nil: none is.
	ClientCAs *x509.CertPool
	Revoked   func(*x509.Certificate) bool
	// TokenKey verifies service account tokens. Required. Bound finds what they are bound
	// to, and Secrets is told on which day the token of a Secret was last used.
	TokenKey *ecdsa.PrivateKey
	Bound    serviceaccount.ServiceAccountTokenGetter
	Secrets  typedv1.SecretsGetter
	// OIDC is an issuer whose users are known too. nil: none.
	OIDC *OIDC
	// OpenPaths are answered to anybody.
	OpenPaths []string
}

// New tells who is calling: a component of this process, the holder of a client
// certificate, a service account, or a user of the OIDC issuer. A wrong token or
// certificate is refused; it never becomes an anonymous caller.
func New(cfg Config) (authenticator.Request, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{cfg.TokenKey.Public()})
	if err != nil {
		return nil, fmt.Errorf("read service account public key: %w", err)
	}
	ofSecrets, err := serviceaccount.NewLegacyValidator(true, cfg.Bound, cfg.Secrets)
	if err != nil {
		return nil, fmt.Errorf("build authenticator of Secrets' tokens: %w", err)
	}
	audience := authenticator.Audiences{Issuer}
	all := []authenticator.Token{
		serviceaccount.JWTTokenAuthenticator([]string{serviceaccount.LegacyIssuer}, keys, audience, ofSecrets),
		serviceaccount.JWTTokenAuthenticator([]string{Issuer}, keys, audience, serviceaccount.NewValidator(cfg.Bound)),
	}
	if cfg.OIDC != nil {
		all = append(all, newIDTokens(cfg.Life, *cfg.OIDC)) // after service accounts, which must never wait for it
	}
	// 10 s, as kube-apiserver: a deleted pod's token may work that much longer.
	tokens := tokencache.New(tokenunion.NewFailOnError(all...), false, 10*time.Second, 0)

	known := []authenticator.Request{cfg.Components}
	if cfg.ClientCAs != nil {
		known = append(known, newCertificates(cfg.ClientCAs, cfg.Revoked))
	}
	known = append(known, bearertoken.New(tokens))

	open := make([]apiserver.AnonymousAuthCondition, 0, len(cfg.OpenPaths))
	for _, p := range cfg.OpenPaths {
		open = append(open, apiserver.AnonymousAuthCondition{Path: p})
	}
	return union.NewFailOnError(
		authgroup.NewAuthenticatedGroupAdder(union.NewFailOnError(known...)),
		anonymous.NewAuthenticator(open),
	), nil
}
