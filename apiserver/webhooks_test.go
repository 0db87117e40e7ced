package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// hook is a webhook's server.
type hook struct {
	*httptest.Server
	ca    []byte
	calls atomic.Int32
}

type answer = func(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse)

// serveHook answers reviews of what is to be admitted.
func serveHook(t *testing.T, do answer) *hook {
	t.Helper()
	return newHook(t, func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Errorf("review: %v", err)
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		do(review.Request, review.Response)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(review)
	})
}

// newHook serves over TLS, with a certificate for 127.0.0.1 and for Service hook in namespace default.
func newHook(t *testing.T, serve http.HandlerFunc) *hook {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "hook"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"hook.default.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.calls.Add(1)
		serve(w, r)
	}))
	h.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: (*ecdsa.PrivateKey)(key)}}}
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func (h *hook) client() registration.WebhookClientConfig {
	return registration.WebhookClientConfig{URL: &h.URL, CABundle: h.ca}
}

func (h *hook) port(t *testing.T) int32 {
	t.Helper()
	u, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

func ptr[T any](v T) *T { return &v }

var everything = []registration.RuleWithOperations{{
	Operations: []registration.OperationType{registration.OperationAll},
	Rule:       registration.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}},
}}

// labelled selects the objects of one test, so that tests do not disturb each other.
func labelled(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"case": name}}
}

func validating(name string, h *hook, change ...func(*registration.ValidatingWebhook)) *registration.ValidatingWebhookConfiguration {
	w := registration.ValidatingWebhook{
		Name: name + ".example.com", ClientConfig: h.client(), Rules: everything, ObjectSelector: labelled(name),
		SideEffects: ptr(registration.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
	for _, c := range change {
		c(&w)
	}
	return &registration.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []registration.ValidatingWebhook{w}}
}

func mutating(name string, h *hook, change ...func(*registration.MutatingWebhook)) *registration.MutatingWebhookConfiguration {
	w := registration.MutatingWebhook{
		Name: name + ".example.com", ClientConfig: h.client(), Rules: everything, ObjectSelector: labelled("mutating"),
		SideEffects: ptr(registration.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
	for _, c := range change {
		c(&w)
	}
	return &registration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []registration.MutatingWebhook{w}}
}

// named makes a ConfigMap with a new name, for the test called name.
func named(name string) *corev1.ConfigMap {
	m := configMap("", "1")
	m.GenerateName, m.Labels = "m-", map[string]string{"case": name}
	return m
}

// say tells whether one of them contains text.
func (w *warnings) say(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(strings.Join(w.texts, "\n"), text)
}

// warned is an administrator's client that keeps warnings.
func (p *peer) warned(t *testing.T) (kubernetes.Interface, *warnings) {
	t.Helper()
	w, cfg := &warnings{}, p.ClientConfig("admin", "system:masters")
	cfg.WarningHandler = w
	return client(t, cfg), w
}

func refuse(_ *admissionv1.AdmissionRequest, out *admissionv1.AdmissionResponse) {
	out.Allowed, out.Result = false, &metav1.Status{Message: "the hook says no", Code: http.StatusTeapot}
}

func allow(*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse) {}

func TestValidatingWebhooks(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	api, heard := p.warned(t)
	configs, maps := api.AdmissionregistrationV1().ValidatingWebhookConfigurations(), api.CoreV1().ConfigMaps("default")
	register := func(t *testing.T, c *registration.ValidatingWebhookConfiguration) {
		t.Helper()
		if _, err := configs.Create(ctx, c, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create := func(name string, dryRun ...string) error {
		_, err := maps.Create(ctx, named(name), metav1.CreateOptions{DryRun: dryRun})
		return err
	}
	refused := func(err error) bool { return err != nil && strings.Contains(err.Error(), "the hook says no") }
	soon := func(t *testing.T, name string) {
		t.Helper()
		eventually(t, "the hook is asked", func() bool { return refused(create(name)) })
	}

	t.Run("the very first is asked from the moment it is made", func(t *testing.T) {
		register(t, validating("first", serveHook(t, refuse)))
		if err := create("first"); !refused(err) || apierrors.ReasonForError(err) == metav1.StatusReasonUnknown && !strings.Contains(err.Error(), "first.example.com") {
			t.Errorf("got %v", err)
		}
		if err := create("another"); err != nil {
			t.Errorf("an object that is not selected: %v", err)
		}
	})
	t.Run("warnings", func(t *testing.T) {
		register(t, validating("warning", serveHook(t, func(in *admissionv1.AdmissionRequest, out *admissionv1.AdmissionResponse) {
			out.Warnings = []string{"this is old"}
		})))
		eventually(t, "warning", func() bool { return create("warning") == nil && heard.say("this is old") })
	})
	t.Run("match conditions", func(t *testing.T) {
		register(t, validating("conditions", serveHook(t, refuse), func(w *registration.ValidatingWebhook) {
			w.MatchConditions = []registration.MatchCondition{{Name: "two", Expression: "object.data.k == '2' && request.userInfo.username == 'admin'"}}
		}))
		two := named("conditions")
		two.Data["k"] = "2"
		eventually(t, "what matches is refused", func() bool {
			_, err := maps.Create(ctx, two, metav1.CreateOptions{})
			return refused(err)
		})
		if err := create("conditions"); err != nil {
			t.Errorf("what does not match: %v", err)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		var dry atomic.Bool
		register(t, validating("dry", serveHook(t, func(in *admissionv1.AdmissionRequest, out *admissionv1.AdmissionResponse) {
			dry.Store(*in.DryRun)
			refuse(in, out)
		})))
		soon(t, "dry")
		if dry.Load() {
			t.Error("a write was reviewed as a dry run")
		}
		if err := create("dry", metav1.DryRunAll); !refused(err) || !dry.Load() {
			t.Errorf("reviewed as a dry run %t: %v", dry.Load(), err)
		}
	})
	t.Run("a server that is down", func(t *testing.T) {
		gone := serveHook(t, allow)
		gone.Close()
		register(t, validating("closed", gone))
		register(t, validating("open", gone, func(w *registration.ValidatingWebhook) { w.FailurePolicy = ptr(registration.Ignore) }))
		eventually(t, "failure policy Fail refuses", func() bool {
			err := create("closed")
			return apierrors.IsInternalError(err) && strings.Contains(err.Error(), `failed calling webhook "closed.example.com"`)
		})
		if err := create("open"); err != nil {
			t.Errorf("failure policy Ignore: %v", err)
		}
	})
	t.Run("a server that is slow", func(t *testing.T) {
		slow := serveHook(t, func(in *admissionv1.AdmissionRequest, _ *admissionv1.AdmissionResponse) {
			time.Sleep(1500 * time.Millisecond)
		})
		register(t, validating("slow", slow, func(w *registration.ValidatingWebhook) { w.TimeoutSeconds = ptr(int32(1)) }))
		eventually(t, "timeout", func() bool {
			err := create("slow")
			return err != nil && strings.Contains(err.Error(), "deadline exceeded")
		})
	})
	t.Run("a Service", func(t *testing.T) {
		h := serveHook(t, refuse)
		// Only a Service with an outside name can lead to this test.
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}
		if _, err := api.CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		register(t, validating("service", h, func(w *registration.ValidatingWebhook) {
			w.ClientConfig.URL, w.ClientConfig.Service = nil, &registration.ServiceReference{Namespace: "default", Name: "hook", Port: ptr(h.port(t))}
		}))
		soon(t, "service")
	})
	t.Run("updates and deletions", func(t *testing.T) {
		var verbs sync.Map
		register(t, validating("verbs", serveHook(t, func(in *admissionv1.AdmissionRequest, _ *admissionv1.AdmissionResponse) {
			verbs.Store(in.Operation, true)
		})))
		eventually(t, "each is reviewed", func() bool {
			m, err := maps.Create(ctx, named("verbs"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m.Data["k"] = "2"
			if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := maps.Delete(ctx, m.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, v := range []admissionv1.Operation{admissionv1.Create, admissionv1.Update, admissionv1.Delete} {
				if _, ok := verbs.Load(v); !ok {
					return false
				}
			}
			return true
		})
	})
}

func TestMutatingWebhooks(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	configs, maps := p.admin.AdmissionregistrationV1().MutatingWebhookConfigurations(), p.admin.CoreV1().ConfigMaps("default")
	patch := func(out *admissionv1.AdmissionResponse, text string) {
		out.Patch, out.PatchType = []byte(text), ptr(admissionv1.PatchTypeJSONPatch)
	}
	// The first copies what the second sets, so it must be asked again after it.
	first := serveHook(t, func(in *admissionv1.AdmissionRequest, out *admissionv1.AdmissionResponse) {
		var m corev1.ConfigMap
		if err := json.Unmarshal(in.Object.Raw, &m); err != nil {
			t.Error(err)
		}
		if v, ok := m.Data["set"]; ok {
			patch(out, `[{"op":"add","path":"/data/copied","value":"`+v+`"}]`)
		}
	})
	second := serveHook(t, func(_ *admissionv1.AdmissionRequest, out *admissionv1.AdmissionResponse) {
		patch(out, `[{"op":"add","path":"/data/set","value":"x"}]`)
	})
	again := func(w *registration.MutatingWebhook) {
		w.ReinvocationPolicy = ptr(registration.IfNeededReinvocationPolicy)
	}
	for _, c := range []*registration.MutatingWebhookConfiguration{mutating("a-first", first, again), mutating("b-second", second)} {
		if _, err := configs.Create(ctx, c, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are asked, the first twice", func() bool {
		m, err := maps.Create(ctx, named("mutating"), metav1.CreateOptions{})
		return err == nil && m.Data["set"] == "x" && m.Data["copied"] == "x"
	})
	if first.calls.Load() <= second.calls.Load() {
		t.Errorf("the first was asked %d times, the second %d times", first.calls.Load(), second.calls.Load())
	}
}

// A webhook that refuses everything and is down must leave a way out.
func TestWebhookThatLocksEverything(t *testing.T) {
	store := raftstore.NewMemory()
	p := start(t, store)
	ctx := t.Context()
	gone := serveHook(t, allow)
	gone.Close()
	all := func(w *registration.ValidatingWebhook) { w.ObjectSelector = nil }
	configs := p.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := configs.Create(ctx, validating("lock", gone, all), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create := func(p *peer) error {
		_, err := p.admin.CoreV1().ConfigMaps("default").Create(ctx, named("lock"), metav1.CreateOptions{})
		return err
	}
	if err := create(p); !apierrors.IsInternalError(err) {
		t.Fatalf("create: %v", err)
	}
	if err := p.Bootstrap(ctx); err != nil {
		t.Errorf("a new leader's first work: %v", err)
	}
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "x"}}
	if _, err := p.admin.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{}); err != nil {
		t.Errorf("token review: %v", err)
	}
	p.stop()
	if err := configs.Delete(ctx, "lock", metav1.DeleteOptions{}); err == nil {
		t.Error("a stopped peer has deleted something")
	}

	p = start(t, store)
	if err := create(p); !apierrors.IsInternalError(err) {
		t.Fatalf("create after a restart: %v", err)
	}
	if err := p.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, "lock", metav1.DeleteOptions{}); err != nil {
		t.Fatalf("delete the configuration: %v", err)
	}
	if err := create(p); err != nil {
		t.Errorf("create after it is gone: %v", err)
	}
}
