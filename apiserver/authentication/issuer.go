package authentication

import (
	"crypto/ecdsa"
	"fmt"
	"net/http"

	"k8s.io/kubernetes/pkg/serviceaccount"
)

// Issuer names this cluster in service account tokens. It is also the only audience
// that the API itself accepts.
const Issuer = "https://kubernetes.default.svc"

// IssuerDocuments answers, by path, what OpenID Connect Discovery 1.0 asks of an issuer, so that
// others can verify service account tokens. Who may read it is RBAC's to say
// (ClusterRole system:service-account-issuer-discovery).
func IssuerDocuments(key *ecdsa.PrivateKey) (map[string]http.HandlerFunc, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{key.Public()})
	if err != nil {
		return nil, fmt.Errorf("read service account public key: %w", err)
	}
	about, err := serviceaccount.NewOpenIDMetadataProvider(Issuer, Issuer+serviceaccount.JWKSPath, "", keys)
	if err != nil {
		return nil, fmt.Errorf("describe the issuer of service account tokens: %w", err)
	}
	return map[string]http.HandlerFunc{
		serviceaccount.OpenIDConfigPath: cached("application/json", about.GetConfigJSON),
		serviceaccount.JWKSPath:         cached("application/jwk-set+json", about.GetKeysetJSON), // RFC 7517, section 8.5.1
	}, nil
}

func cached(contentType string, document func() ([]byte, int)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		body, maxAge := document()
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", maxAge))
		w.Write(body)
	}
}
