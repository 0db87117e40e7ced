package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	jose "gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/apiserver/authentication"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// issuer is an OpenID Connect issuer on this machine.
type issuer struct {
	*httptest.Server
	key   *ecdsa.PrivateKey
	asked atomic.Int32
	down  atomic.Bool
}

func serveIssuer(t *testing.T) *issuer {
	t.Helper()
	is := &issuer{key: newKey(t)}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		sendJSON(t, w, map[string]any{"issuer": is.URL, "jwks_uri": is.URL + "/keys", "authorization_endpoint": is.URL + "/auth", "token_endpoint": is.URL + "/token"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		sendJSON(t, w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: is.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	is.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		is.asked.Add(1)
		if is.down.Load() {
			http.Error(w, "out of order", http.StatusBadGateway)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(is.Close)
	return is
}

func sendJSON(t *testing.T, w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Error(err)
	}
}

// token signs claims, with those of a good token where nothing else is said.
func (is *issuer) token(t *testing.T, key *ecdsa.PrivateKey, id string, change map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{
		"iss": is.URL, "aud": "rookery", "sub": "jane", "groups": []string{"devs"}, "hd": "example.com",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, change)
	raw, err := jwt.Signed(signer).Claims(claims).CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (is *issuer) settings() *authentication.OIDC {
	return &authentication.OIDC{
		IssuerURL: is.URL, ClientID: "rookery", UsernamePrefix: "oidc:", GroupsClaim: "groups", GroupsPrefix: "oidc:",
		RequiredClaims: map[string]string{"hd": "example.com"}, SigningAlgs: []string{"ES256"},
		CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: is.Certificate().Raw}),
	}
}

func trusting(o *authentication.OIDC) func(*apiserver.Config) {
	return func(c *apiserver.Config) { c.OIDC = o }
}

// bearer is a client with a token.
func bearer(t *testing.T, anybody *clientrest.Config, token string) kubernetes.Interface {
	cfg := clientrest.CopyConfig(anybody)
	cfg.BearerToken = token
	return client(t, cfg)
}

func whoami(ctx context.Context, c kubernetes.Interface) (authenticationv1.UserInfo, error) {
	review, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return review.Status.UserInfo, nil
}

func TestIDTokens(t *testing.T) {
	is := serveIssuer(t)
	p := start(t, raftstore.NewMemory(), trusting(is.settings()))
	ctx, anybody := t.Context(), p.listen(t)
	if n := is.asked.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times before there was a token", n)
	}

	jane := bearer(t, anybody, is.token(t, is.key, "1", nil))
	me, err := whoami(ctx, jane)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"oidc:devs", "system:authenticated"}; me.Username != "oidc:jane" || !slices.Equal(slices.Sorted(slices.Values(me.Groups)), want) {
		t.Errorf("whoami: %+v", me)
	}

	if _, err := jane.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list pods without a role: %v, want 403", err)
	}
	grant := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "devs"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:aggregate-to-view"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "oidc:devs"}},
	}
	if _, err := p.admin.RbacV1().RoleBindings("default").Create(ctx, grant, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group's role counts", func() bool {
		_, err := jane.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		return err == nil
	})
	if _, err := jane.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets: %v, want 403", err)
	}

	other := serveIssuer(t)
	for name, token := range map[string]string{
		"another audience":       is.token(t, is.key, "1", map[string]any{"aud": "somebody"}),
		"expired":                is.token(t, is.key, "1", map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}),
		"another issuer":         other.token(t, other.key, "1", nil),
		"says it is the issuer":  is.token(t, other.key, "1", nil),
		"unknown key":            is.token(t, other.key, "2", nil),
		"a claim is missing":     is.token(t, is.key, "1", map[string]any{"hd": "example.org"}),
		"no user":                is.token(t, is.key, "1", map[string]any{"sub": nil}),
		"the cluster's issuer":   is.token(t, is.key, "1", map[string]any{"iss": authentication.Issuer}),
		"no token at all":        "abc",
		"signed by nobody":       "eyJhbGciOiJub25lIn0.e30.",
		"not a token, many dots": "a.b.c.d",
	} {
		if _, err := whoami(ctx, bearer(t, anybody, token)); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v, want 401", name, err)
		}
	}
	if n := other.asked.Load(); n != 0 {
		t.Errorf("an issuer that is not configured was asked %d times", n)
	}

	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: is.token(t, is.key, "1", nil)}}
	if review, err = p.admin.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{}); err != nil || !review.Status.Authenticated || review.Status.User.Username != "oidc:jane" {
		t.Errorf("token review: %+v, %v", review, err)
	}
}

// An issuer makes no administrators, peers or service accounts, whatever its claims say.
func TestIDTokensAreOfOutsiders(t *testing.T) {
	is := serveIssuer(t)
	o := is.settings()
	o.UsernamePrefix, o.GroupsPrefix = "-", ""
	p := start(t, raftstore.NewMemory(), trusting(o))
	anybody := p.listen(t)
	if me, err := whoami(t.Context(), bearer(t, anybody, is.token(t, is.key, "1", nil))); err != nil || me.Username != "jane" {
		t.Errorf("without a prefix: %+v, %v", me, err)
	}
	for name, change := range map[string]map[string]any{
		"administrators":  {"groups": []string{"devs", "system:masters"}},
		"peers":           {"sub": "system:node:n1", "groups": []string{"system:nodes"}},
		"service account": {"sub": "system:serviceaccount:kube-system:default"},
	} {
		if me, err := whoami(t.Context(), bearer(t, anybody, is.token(t, is.key, "1", change))); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %+v, %v, want 401", name, me, err)
		}
	}
}

// A site without a way to the issuer starts, and its service accounts work.
func TestIssuerOutOfReach(t *testing.T) {
	is := serveIssuer(t)
	is.down.Store(true)
	p := start(t, raftstore.NewMemory(), trusting(is.settings()))
	ctx, anybody := t.Context(), p.listen(t)
	good := bearer(t, anybody, is.token(t, is.key, "1", nil))
	if _, err := whoami(ctx, good); !apierrors.IsUnauthorized(err) {
		t.Errorf("with the issuer down: %v, want 401", err)
	}
	asked := is.asked.Load()
	if _, err := whoami(ctx, good); !apierrors.IsUnauthorized(err) {
		t.Errorf("a moment later: %v, want 401", err)
	}
	if is.asked.Load() != asked {
		t.Error("an issuer that does not answer was asked again at once")
	}

	if _, err := p.admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	request, err := p.admin.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if me, err := whoami(ctx, bearer(t, anybody, request.Status.Token)); err != nil || me.Username != "system:serviceaccount:default:robot" {
		t.Errorf("service account: %+v, %v", me, err)
	}
	if took := time.Since(began); took > 4500*time.Millisecond { // issuerPatience is 5 s
		t.Errorf("a service account waited %s for the issuer", took)
	}

	is.down.Store(false)
	eventually(t, "the issuer is back and its users are", func() bool {
		me, err := whoami(ctx, good)
		return err == nil && me.Username == "oidc:jane"
	})
}

func TestOIDCThatCannotWork(t *testing.T) {
	is := serveIssuer(t)
	for name, change := range map[string]func(*authentication.OIDC){
		"no client id":   func(o *authentication.OIDC) { o.ClientID = "" },
		"http":           func(o *authentication.OIDC) { o.IssuerURL = "http://id.example.com" },
		"no certificate": func(o *authentication.OIDC) { o.CA = []byte("hello") },
		"algorithm":      func(o *authentication.OIDC) { o.SigningAlgs = []string{"none"} },
	} {
		o := is.settings()
		change(o)
		if err := o.Validate(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
