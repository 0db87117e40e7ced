package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/rundigitalplatform/rookery/apiserver/authentication"
)

// oidcConfig are the settings of an OpenID Connect issuer, named as kube-apiserver's flags.
type oidcConfig struct {
	authentication.OIDC
	CAFile string
}

func (c *oidcConfig) flags(f *pflag.FlagSet) {
	f.StringVar(&c.IssuerURL, "oidc-issuer-url", "", "https URL of an OpenID Connect issuer whose users the API takes (default: none)")
	f.StringVar(&c.ClientID, "oidc-client-id", "", "the audience that the issuer's tokens must have")
	f.StringVar(&c.UsernameClaim, "oidc-username-claim", "sub", "claim that names the user")
	f.StringVar(&c.UsernamePrefix, "oidc-username-prefix", "", "goes before the user's name; - is nothing (default: the issuer and #, nothing for the claim email)")
	f.StringVar(&c.GroupsClaim, "oidc-groups-claim", "", "claim that names the user's groups (default: none)")
	f.StringVar(&c.GroupsPrefix, "oidc-groups-prefix", "", "goes before each group")
	f.StringToStringVar(&c.RequiredClaims, "oidc-required-claim", nil, "claims that a token must have, CLAIM=VALUE")
	f.StringVar(&c.CAFile, "oidc-ca-file", "", "PEM of the CA that signed the issuer's TLS certificate (default: the CAs that the machine trusts)")
	f.StringSliceVar(&c.SigningAlgs, "oidc-signing-algs", []string{"RS256"}, "signatures that are taken")
}

// load is the issuer that the configuration asks for; nil: none.
func (c oidcConfig) load() (*authentication.OIDC, error) {
	if c.IssuerURL == "" {
		if c.ClientID != "" || c.CAFile != "" || c.UsernamePrefix != "" || c.GroupsClaim != "" || c.GroupsPrefix != "" || len(c.RequiredClaims) > 0 {
			return nil, errors.New("oidc settings without oidc-issuer-url: set that too, or remove them")
		}
		return nil, nil
	}
	o := c.OIDC
	if c.CAFile != "" {
		var err error
		if o.CA, err = os.ReadFile(c.CAFile); err != nil {
			return nil, fmt.Errorf("oidc-ca-file: %w", err)
		}
		if len(o.CA) == 0 {
			return nil, fmt.Errorf("oidc-ca-file: %s is empty", c.CAFile)
		}
	}
	return &o, o.Validate()
}
