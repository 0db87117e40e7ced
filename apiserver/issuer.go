package apiserver

import (
	"fmt"
	"net/http"

	"k8s.io/kubernetes/pkg/serviceaccount"
)

// issuerDocuments answers what OpenID Connect Discovery 1.0 asks of an issuer, so that
// others can verify service account tokens. Who may read it is RBAC's to say
// (ClusterRole system:service-account-issuer-discovery).
func issuerDocuments(cfg Config) (map[string]http.HandlerFunc, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{cfg.TokenKey.Public()})
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
