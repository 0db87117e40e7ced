package apiserver_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	registrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
	"github.com/rundigitalplatform/rookery/controller"
)

// extension is an extension server that believes the front proxy alone, as those that
// are built on k8s.io/apiserver.
type extension struct {
	*httptest.Server
	group   string
	ca      []byte         // of its certificate
	trust   *x509.CertPool // of the front proxy
	down    atomic.Bool
	old     atomic.Bool // it knows discovery in the old form alone
	v1beta1 atomic.Bool // it answers to that version too, with nothing in it

	mu   sync.Mutex
	last http.Header // of the last request that was not the API's own
}

// serveExtension serves widgets of a group as Service ext in namespace default.
func serveExtension(t *testing.T, group string, trust []byte) *extension {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(4), Subject: pkix.Name{CommonName: "ext"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"ext.default.svc"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	e := &extension{group: group, trust: x509.NewCertPool(), ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	e.trust.AppendCertsFromPEM(trust)
	mux := http.NewServeMux()
	e.routes(t, mux)
	e.Server = httptest.NewUnstartedServer(e.believe(mux))
	e.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert}
	e.StartTLS()
	t.Cleanup(func() { e.CloseClientConnections(); e.Close() })
	return e
}

// believe refuses whoever is not the front proxy.
func (e *extension) believe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e.down.Load() {
			http.Error(w, "out of order", http.StatusBadGateway)
			return
		}
		if len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		leaf := r.TLS.PeerCertificates[0]
		_, err := leaf.Verify(x509.VerifyOptions{Roots: e.trust, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil || leaf.Subject.CommonName != "system:front-proxy" {
			http.Error(w, fmt.Sprintf("not the front proxy: %v", err), http.StatusUnauthorized)
			return
		}
		if r.Header.Get("X-Remote-User") != "system:kube-aggregator" {
			e.mu.Lock()
			e.last = r.Header.Clone()
			e.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

func (e *extension) routes(t *testing.T, mux *http.ServeMux) {
	base := "/apis/" + e.group + "/v1"
	widgets := metav1.APIResource{Name: "widgets", SingularName: "widget", Kind: "Widget", Namespaced: true, Verbs: metav1.Verbs{"get", "list", "watch"}}
	mux.HandleFunc("/apis", func(w http.ResponseWriter, r *http.Request) {
		if e.old.Load() {
			http.Error(w, "what?", http.StatusNotAcceptable)
			return
		}
		w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		json.NewEncoder(w).Encode(apidiscoveryv2.APIGroupDiscoveryList{Items: []apidiscoveryv2.APIGroupDiscovery{{
			ObjectMeta: metav1.ObjectMeta{Name: e.group},
			Versions: []apidiscoveryv2.APIVersionDiscovery{{Version: "v1", Resources: []apidiscoveryv2.APIResourceDiscovery{{
				Resource: "widgets", SingularResource: "widget", Scope: apidiscoveryv2.ScopeNamespace, Verbs: widgets.Verbs,
				ResponseKind: &metav1.GroupVersionKind{Group: e.group, Version: "v1", Kind: "Widget"},
			}}}},
		}}})
	})
	mux.HandleFunc(base, func(w http.ResponseWriter, r *http.Request) {
		sendJSON(t, w, metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: e.group + "/v1", APIResources: []metav1.APIResource{widgets}})
	})
	mux.HandleFunc("/apis/"+e.group+"/v1beta1", func(w http.ResponseWriter, r *http.Request) {
		if !e.v1beta1.Load() {
			http.NotFound(w, r)
			return
		}
		sendJSON(t, w, metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: e.group + "/v1beta1"})
	})
	mux.HandleFunc(base+"/namespaces/default/widgets", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			sendJSON(t, w, map[string]any{"apiVersion": e.group + "/v1", "kind": "WidgetList", "metadata": map[string]any{}, "items": []any{}})
			return
		}
		for i := range 3 { // one event only after the one before was read
			fmt.Fprintf(w, `{"type":"ADDED","object":{"n":%d}}`+"\n", i)
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	mux.HandleFunc(base+"/namespaces/default/widgets/slow", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
	})
	mux.HandleFunc(base+"/namespaces/default/widgets/w/exec", func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, err := buffered.ReadString('\n')
		if err != nil {
			t.Errorf("upgraded: %v", err)
		}
		io.WriteString(conn, r.Header.Get("X-Remote-User")+" said "+line)
	})
	mux.HandleFunc("/openapi/v3", func(w http.ResponseWriter, r *http.Request) {
		sendJSON(t, w, map[string]any{"paths": map[string]any{
			"apis/" + e.group + "/v1": map[string]string{"serverRelativeURL": "/openapi/v3/apis/" + e.group + "/v1?hash=1"},
			"apis/apps/v1":            map[string]string{"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=mine"},
		}})
	})
	mux.HandleFunc("/openapi/v3/apis/"+e.group+"/v1", func(w http.ResponseWriter, r *http.Request) {
		sendJSON(t, w, map[string]any{"openapi": "3.0.0", "info": map[string]string{"title": "widgets"}})
	})
}

func (e *extension) port(t *testing.T) int32 {
	t.Helper()
	u, err := url.Parse(e.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

// asker is who asked last.
func (e *extension) asker() http.Header {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

func (e *extension) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = nil
}

// frontProxy is a CA, what it signed, and how often that was asked for.
type frontProxy struct {
	aggregation.FrontProxy
	made atomic.Int32
}

func newFrontProxy(t *testing.T) *frontProxy {
	ca := newAuthority(t)
	leaf := ca.sign(t, time.Now().Add(time.Hour), "system:front-proxy")
	return &frontProxy{FrontProxy: aggregation.FrontProxy{
		Cert: leaf.CertData, Key: leaf.KeyData, Name: "system:front-proxy",
		CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), ClientCA: []byte("the users' CA"),
	}}
}

func (f *frontProxy) shown(c *apiserver.Config) {
	c.FrontProxy = func() (aggregation.FrontProxy, error) { f.made.Add(1); return f.FrontProxy, nil }
}

// apiServices is an administrator's client.
func (p *peer) apiServices(t *testing.T) registrationclient.APIServiceInterface {
	t.Helper()
	c, err := clientset.NewForConfig(p.ClientConfig("admin", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	return c.ApiregistrationV1().APIServices()
}

// leads has the peer do the leader's part.
func (p *peer) leads(t *testing.T) {
	term := controller.NewTerm(p.Informers(), p.StartInformers)
	done := make(chan error, 1)
	go func() { done <- p.WatchExtensions(t.Context(), term) }()
	t.Cleanup(func() { // t.Context has ended by now
		if err := <-done; err != nil {
			t.Errorf("watch extensions: %v", err)
		}
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	})
}

// register makes the extension a part of the peer's API, by a Service that leads to this test.
func (e *extension) register(t *testing.T, p *peer, change ...func(*apiregistrationv1.APIService)) *apiregistrationv1.APIService {
	t.Helper()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "ext"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}
	if _, err := p.admin.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil && !exists(err) {
		t.Fatal(err)
	}
	s := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1." + e.group},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: e.group, Version: "v1", GroupPriorityMinimum: 100, VersionPriority: 100, CABundle: e.ca,
			Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "ext", Port: ptr(e.port(t))},
		},
	}
	for _, c := range change {
		c(s)
	}
	created, err := p.apiServices(t).Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// condition is an APIService's availability, as "True Passed".
func (p *peer) condition(t *testing.T, name string) string {
	t.Helper()
	s, err := p.apiServices(t).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	for _, c := range s.Status.Conditions {
		if c.Type == apiregistrationv1.Available {
			return strings.TrimSpace(string(c.Status) + " " + c.Reason)
		}
	}
	return "Unknown"
}

func (p *peer) becomes(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, name+" is "+want, func() bool { return p.condition(t, name) == want })
}
