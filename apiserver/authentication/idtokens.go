package authentication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	jose "gopkg.in/go-jose/go-jose.v2/jwt"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

const (
	// issuerPatience is how long a request waits for the issuer's discovery document,
	// when this peer has not seen it yet.
	issuerPatience = 5 * time.Second
	// issuerPause is how long an issuer that did not answer is left alone.
	issuerPause = 5 * time.Second
)

// idTokens takes the ID tokens of an OIDC issuer. Kubernetes' own authenticator
// begins to ask the issuer when it is made, and does so every ten seconds until it
// answers. Here it is made by the first token that claims to be the issuer's, and
// given up if the issuer does not answer, so that a site without a way out neither
// waits at the start nor fills its log.
type idTokens struct {
	oidc OIDC // with its defaults
	life context.Context

	mu    sync.Mutex
	known authenticator.Token // nil: the issuer has not answered yet
	try   *attempt            // the last one; nil: none yet
}

// attempt is one try to reach the issuer.
type attempt struct {
	done  chan struct{} // closed at its end
	ended time.Time     // valid, as err is, after done
	err   error
}

func newIDTokens(life context.Context, o OIDC) authenticator.Token {
	return authenticator.WrapAudienceAgnosticToken(authenticator.Audiences{Issuer}, &idTokens{oidc: o.withDefaults(), life: life})
}

// AuthenticateToken implements [authenticator.Token].
func (t *idTokens) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if !t.claims(token) {
		return nil, false, nil
	}
	verify, err := t.ready(ctx)
	if err != nil {
		return nil, false, err
	}
	resp, ok, err := verify.AuthenticateToken(ctx, token)
	if !ok || err != nil {
		return nil, false, err
	}
	if err := t.check(resp.User); err != nil {
		return nil, false, err
	}
	return resp, true, nil
}

// claims tells whether a token says that it is the issuer's. Nothing is verified yet.
func (t *idTokens) claims(token string) bool {
	parsed, err := jose.ParseSigned(token)
	if err != nil {
		return false
	}
	var said jose.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&said); err != nil {
		return false
	}
	// Google's tokens may leave out the scheme; upstream knows that too.
	return said.Issuer == t.oidc.IssuerURL || "https://"+said.Issuer == t.oidc.IssuerURL && said.Issuer == "accounts.google.com"
}

// check refuses users and groups that mean something to the cluster itself: an issuer
// makes neither administrators of all, nor peers, nor service accounts. And it refuses
// who has no name, which upstream takes for one that is the prefix alone.
func (t *idTokens) check(u user.Info) error {
	if u.GetName() == t.oidc.UsernamePrefix {
		return fmt.Errorf("the issuer's token names nobody: its claim %q is empty", t.oidc.UsernameClaim)
	}
	for _, name := range append([]string{u.GetName()}, u.GetGroups()...) {
		if strings.HasPrefix(name, "system:") {
			return fmt.Errorf("the issuer's token is of %q: names that begin with system: are the cluster's own; set oidc-username-prefix or oidc-groups-prefix", name)
		}
	}
	return nil
}

// ready returns the authenticator, waiting for the issuer to answer if it has not yet.
func (t *idTokens) ready(ctx context.Context) (authenticator.Token, error) {
	t.mu.Lock()
	if t.known != nil {
		defer t.mu.Unlock()
		return t.known, nil
	}
	a := t.try
	if a == nil || a.isOver() && time.Since(a.ended) > issuerPause {
		a = &attempt{done: make(chan struct{})}
		t.try = a
		go t.reach(a)
	}
	t.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if a.err != nil {
		return nil, fmt.Errorf("the OIDC issuer %s does not answer, so its tokens cannot be verified: %w", t.oidc.IssuerURL, a.err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known, nil
}

func (a *attempt) isOver() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// reach makes the authenticator and waits until it has the issuer's discovery document.
func (t *idTokens) reach(a *attempt) {
	defer close(a.done)
	life, giveUp := context.WithCancel(t.life)
	known, err := t.begin(life)
	if err != nil {
		giveUp()
		a.err, a.ended = err, time.Now()
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	context.AfterFunc(t.life, giveUp)
	t.known = known
}

func (t *idTokens) begin(life context.Context) (authenticator.Token, error) {
	options := oidc.Options{JWTAuthenticator: t.oidc.authenticator(), SupportedSigningAlgs: t.oidc.SigningAlgs, DisallowedIssuers: []string{Issuer}, Compiler: noExpressions{}}
	if t.oidc.CA != nil {
		ca, err := dynamiccertificates.NewStaticCAContent("oidc-ca-file", t.oidc.CA)
		if err != nil {
			return nil, fmt.Errorf("read oidc-ca-file: %w", err)
		}
		options.CAContentProvider = ca
	}
	known, err := oidc.New(life, options)
	if err != nil {
		return nil, err
	}
	deadline := time.After(issuerPatience)
	for first := known.HealthCheck(); ; {
		wait := known.HealthCheck()
		if wait == nil {
			return known, nil
		}
		if errors.Unwrap(wait) != errors.Unwrap(first) { // an answer, and the next try would be in ten seconds
			return nil, wait
		}
		select {
		case <-life.Done():
			return nil, errors.New("this peer is shutting down")
		case <-deadline:
			return nil, wait
		case <-time.After(10 * time.Millisecond):
		}
	}
}
