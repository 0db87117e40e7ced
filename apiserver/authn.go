package apiserver

import (
	"context"
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

// openPaths are answered to anybody, so that a balancer or a person without
// credentials can see whether this peer is well.
func openPaths() []string { return []string{"/livez", "/readyz", "/healthz", "/version"} }

// newAuthenticator tells who is calling: a component of this process, the
// holder of a client certificate, a service account, or a user of the OIDC issuer. A
// wrong token or certificate is refused; it never becomes an anonymous caller. secrets
// is told on which day the token of a Secret was last used. life is that of the API.
func newAuthenticator(life context.Context, cfg Config, bound serviceaccount.ServiceAccountTokenGetter, secrets typedv1.SecretsGetter) (authenticator.Request, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{cfg.TokenKey.Public()})
	if err != nil {
		return nil, fmt.Errorf("read service account public key: %w", err)
	}
	ofSecrets, err := serviceaccount.NewLegacyValidator(true, bound, secrets)
	if err != nil {
		return nil, fmt.Errorf("build authenticator of Secrets' tokens: %w", err)
	}
	audience := authenticator.Audiences{Issuer}
	all := []authenticator.Token{
		serviceaccount.JWTTokenAuthenticator([]string{serviceaccount.LegacyIssuer}, keys, audience, ofSecrets),
		serviceaccount.JWTTokenAuthenticator([]string{Issuer}, keys, audience, serviceaccount.NewValidator(bound)),
	}
	if cfg.OIDC != nil {
		all = append(all, newIDTokens(life, *cfg.OIDC)) // after service accounts, which must never wait for it
	}
	// 10 s, as kube-apiserver: a deleted pod's token may work that much longer.
	tokens := tokencache.New(tokenunion.NewFailOnError(all...), false, 10*time.Second, 0)

	known := []authenticator.Request{authenticator.RequestFunc(inProcessIdentity)}
	if cfg.ClientCAs != nil {
		known = append(known, newCertificates(cfg.ClientCAs, cfg.Revoked))
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
