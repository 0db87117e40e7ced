package apiserver_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/rundigitalplatform/rookery/apiserver/authentication"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func mustParse(q string) resource.Quantity { return resource.MustParse(q) }

func TestWhoMayEnter(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	open := p.listen(t)
	stranger := newAuthority(t)
	far := time.Now().Add(1e5 * time.Hour)
	past := time.Now().Add(-24 * time.Hour)

	// code of GET /api/v1/services with these credentials
	for _, tt := range []struct {
		name string
		with func(*clientrest.Config)
		want int
	}{
		{"nobody", func(*clientrest.Config) {}, 401},
		{"wrong token", func(c *clientrest.Config) { c.BearerToken = "x" }, 401},
		{"admin's certificate", func(c *clientrest.Config) { c.TLSClientConfig = p.ca.sign(t, far, "admin", "system:masters") }, 200},
		{"user without a role", func(c *clientrest.Config) { c.TLSClientConfig = p.ca.sign(t, far, "bob") }, 403},
		{"admin's old certificate", func(c *clientrest.Config) { c.TLSClientConfig = p.ca.sign(t, past, "admin", "system:masters") }, 401},
		{"peer's certificate, clock is off", func(c *clientrest.Config) {
			c.TLSClientConfig = p.ca.sign(t, past, "system:node:n1", "system:nodes")
		}, 200},
		{"certificate of another authority", func(c *clientrest.Config) {
			c.TLSClientConfig = stranger.sign(t, far, "admin", "system:masters")
		}, 401},
		{"certificate of another authority for a peer", func(c *clientrest.Config) {
			c.TLSClientConfig = stranger.sign(t, far, "system:node:n1", "system:nodes")
		}, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := clientrest.CopyConfig(open)
			tt.with(cfg)
			got := 0
			client(t, cfg).CoreV1().RESTClient().Get().AbsPath("/api/v1/services").Do(t.Context()).StatusCode(&got)
			if got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/version"} {
		if body, err := client(t, open).CoreV1().RESTClient().Get().AbsPath(path).Do(t.Context()).Raw(); err != nil {
			t.Errorf("%s for anybody: %s, %v", path, body, err)
		}
	}
}

func TestServiceAccountToken(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	open := p.listen(t)
	ctx := t.Context()
	if _, err := p.admin.CoreV1().Pods("default").Create(ctx, aPod("holder"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	seconds := int64(600)
	tr, err := p.admin.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "holder"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := clientrest.CopyConfig(open)
	cfg.BearerToken = tr.Status.Token
	c := client(t, cfg)

	who, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Fatalf("token is of %v, %v", who, err)
	}
	_, err = c.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `cannot list resource "pods"`) {
		t.Errorf("list without a role: %v", err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "see"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:aggregate-to-view"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "default"}},
	}
	if _, err := p.admin.RbacV1().RoleBindings("default").Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "list with a role", func() bool { _, err := c.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); return err == nil })
	review, err := p.admin.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:default:default", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "kube-system", Verb: "list", Resource: "pods"},
	}}, metav1.CreateOptions{})
	if err != nil || review.Status.Allowed {
		t.Errorf("access elsewhere: %v, %v", review, err)
	}

	// The token dies with its pod, after the 10 s for which answers are kept.
	if err := p.admin.CoreV1().Pods("default").Delete(ctx, "holder", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "token of a deleted pod refused", func() bool {
		code := 0
		c.CoreV1().RESTClient().Get().AbsPath("/api/v1/pods").Do(ctx).StatusCode(&code)
		return code == http.StatusUnauthorized
	})
}

// TestTokenOfASecret uses a long-lived token as the controller writes it.
func TestTokenOfASecret(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	open := p.listen(t)
	ctx := t.Context()
	account, err := p.admin.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "outside", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default", corev1.ServiceAccountUIDKey: string(account.UID)}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}
	tokens, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, p.tokenKey)
	if err != nil {
		t.Fatal(err)
	}
	public, private := serviceaccount.LegacyClaims(*account, *secret)
	token, err := tokens.GenerateToken(ctx, public, private)
	if err != nil {
		t.Fatal(err)
	}
	secret.Data = map[string][]byte{corev1.ServiceAccountTokenKey: []byte(token)}
	if _, err := p.admin.CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg := clientrest.CopyConfig(open)
	cfg.BearerToken = token
	c := client(t, cfg)
	who, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Fatalf("token is of %v, %v", who, err)
	}
	if err := p.admin.CoreV1().Secrets("default").Delete(ctx, "outside", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "token of a deleted secret refused", func() bool {
		code := 0
		c.CoreV1().RESTClient().Get().AbsPath("/api/v1/pods").Do(ctx).StatusCode(&code)
		return code == http.StatusUnauthorized
	})
}

func TestIssuerDocuments(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	for path, want := range map[string]string{
		"/.well-known/openid-configuration": authentication.Issuer + "/openid/v1/jwks",
		"/openid/v1/jwks":                   `"kty":"EC"`,
	} {
		body, err := p.admin.CoreV1().RESTClient().Get().AbsPath(path).Do(t.Context()).Raw()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v", path, body, err)
		}
	}
}

func TestRunEndsWatches(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	w, err := p.admin.CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	eventually(t, "watch closed", func() bool {
		select {
		case _, open := <-w.ResultChan():
			return !open
		default:
			return false
		}
	})
	if _, err := p.admin.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("request after the end: %v", err)
	}
}
