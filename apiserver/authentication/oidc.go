package authentication

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

// OIDC says whose ID tokens the API takes beside the tokens of service accounts.
// The fields are kube-apiserver's flags of the same names.
type OIDC struct {
	// IssuerURL is an https URL, as tokens have it in `iss`. Below it is the discovery document. Required.
	IssuerURL string
	// ClientID is the audience that tokens must have. Required.
	ClientID string
	// UsernameClaim is the claim that names the user. Default `sub`.
	UsernameClaim string
	// UsernamePrefix goes before the name. Default: the issuer and `#`, nothing if
	// the claim is `email`; `-` means nothing.
	UsernamePrefix string
	// GroupsClaim is the claim that names the groups, a string or strings. Empty: tokens have no groups.
	GroupsClaim string
	// GroupsPrefix goes before each group.
	GroupsPrefix string
	// RequiredClaims are claims with the values that a token must have.
	RequiredClaims map[string]string
	// CA, in PEM, has signed the issuer's TLS certificate. nil: one that the machine trusts has.
	CA []byte
	// SigningAlgs are the signatures that are taken. Default RS256.
	SigningAlgs []string
}

func (o OIDC) withDefaults() OIDC {
	o.UsernameClaim = cmp.Or(o.UsernameClaim, "sub")
	switch {
	case o.UsernamePrefix == "-":
		o.UsernamePrefix = ""
	case o.UsernamePrefix == "" && o.UsernameClaim != "email":
		o.UsernamePrefix = o.IssuerURL + "#"
	}
	if len(o.SigningAlgs) == 0 {
		o.SigningAlgs = []string{"RS256"}
	}
	return o
}

// Validate refuses what cannot work, in the words of the settings. It asks nobody.
func (o OIDC) Validate() error {
	o = o.withDefaults()
	u, err := url.Parse(o.IssuerURL)
	switch {
	case o.IssuerURL == "":
		return errors.New("oidc-issuer-url is missing: it is the https URL that tokens have as their `iss`")
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("oidc-issuer-url %q is not an https URL such as https://id.example.com: who could change what an issuer says on the way could be anybody", o.IssuerURL)
	case o.IssuerURL == Issuer:
		return fmt.Errorf("oidc-issuer-url %q is this cluster's own", o.IssuerURL)
	case o.ClientID == "":
		return errors.New("oidc-client-id is missing: it is what the issuer calls this cluster, the `aud` of its tokens")
	}
	if o.CA != nil && !x509.NewCertPool().AppendCertsFromPEM(o.CA) {
		return errors.New("oidc-ca-file holds no certificate: it is the PEM of the CA that signed the issuer's TLS certificate")
	}
	for _, alg := range o.SigningAlgs {
		if all := oidc.AllValidSigningAlgorithms(); !slices.Contains(all, alg) {
			return fmt.Errorf("oidc-signing-algs has %q: there are %s", alg, strings.Join(all, ", "))
		}
	}
	_, wrong := validation.CompileAndValidateJWTAuthenticator(noExpressions{}, o.authenticator(), []string{Issuer})
	if err := wrong.ToAggregate(); err != nil {
		return fmt.Errorf("oidc settings: %w", err)
	}
	return nil
}

// authenticator is o, which must have its defaults, in Kubernetes' own form.
func (o OIDC) authenticator() apiserver.JWTAuthenticator {
	a := apiserver.JWTAuthenticator{
		Issuer:        apiserver.Issuer{URL: o.IssuerURL, Audiences: []string{o.ClientID}, CertificateAuthority: string(o.CA)},
		ClaimMappings: apiserver.ClaimMappings{Username: apiserver.PrefixedClaimOrExpression{Claim: o.UsernameClaim, Prefix: &o.UsernamePrefix}},
	}
	if o.GroupsClaim != "" {
		a.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Claim: o.GroupsClaim, Prefix: &o.GroupsPrefix}
	}
	for claim, value := range o.RequiredClaims {
		a.ClaimValidationRules = append(a.ClaimValidationRules, apiserver.ClaimValidationRule{Claim: claim, RequiredValue: value})
	}
	return a
}

// noExpressions stands where upstream compiles the expressions of its configuration
// file. Settings have none, and the compiler's environment would cost megabytes.
type noExpressions struct{}

var errNoExpressions = errors.New("the oidc settings take claims, not expressions")

func (noExpressions) CompileClaimsExpression(authenticationcel.ExpressionAccessor) (authenticationcel.CompilationResult, error) {
	return authenticationcel.CompilationResult{}, errNoExpressions
}

func (noExpressions) CompileUserExpression(authenticationcel.ExpressionAccessor) (authenticationcel.CompilationResult, error) {
	return authenticationcel.CompilationResult{}, errNoExpressions
}
