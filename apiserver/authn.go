package apiserver

import (
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authgroup "k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
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
