package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// world is a cluster with a proxy over real sockets.
type world struct {
	t           *testing.T
	client      *fake.Clientset
	proxy       *Proxy
	http, https uint16
	log, access *lockedBuffer
	dead        atomic.Pointer[string]
	changed     chan struct{}
	authority   *authority
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewSimpleClientset(), http: freePort(t), https: freePort(t), log: &lockedBuffer{}, access: &lockedBuffer{}, changed: make(chan struct{}, 1), authority: newAuthority(t)}
	w.dead.Store(ptr.To(""))
	factory := informers.NewSharedInformerFactory(w.client, 0)
	slices := factory.Discovery().V1().EndpointSlices()
	ctx, cancel := context.WithCancel(t.Context())
	cfg := Config{
		HTTP: w.http, HTTPS: w.https, Node: "n1", Client: w.client, Informers: factory, StartInformers: func() { factory.Start(ctx.Done()) },
		Alive: func(node string) bool { return node != *w.dead.Load() }, Changed: w.changed, Issue: w.authority.issue,
		Slices: func(namespace, service string) []*discoveryv1.EndpointSlice {
			// Of this lister there is no error.
			found, _ := slices.Lister().EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service}))
			return found
		},
		Access: slog.New(slog.NewJSONHandler(w.access, nil)), Logger: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	w.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	w.create(&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}}, Spec: networkingv1.IngressClassSpec{Controller: ControllerName}})
	var err error
	w.proxy, err = New(cfg)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- w.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return w
}

func (w *world) create(obj any) {
	w.t.Helper()
	ctx := w.t.Context()
	var err error
	switch o := obj.(type) {
	case *corev1.Node:
		_, err = w.client.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
	case *networkingv1.IngressClass:
		_, err = w.client.NetworkingV1().IngressClasses().Create(ctx, o, metav1.CreateOptions{})
	case *networkingv1.Ingress:
		_, err = w.client.NetworkingV1().Ingresses("shop").Create(ctx, o, metav1.CreateOptions{})
	case *corev1.Secret:
		_, err = w.client.CoreV1().Secrets("shop").Create(ctx, o, metav1.CreateOptions{})
	default:
		w.t.Fatalf("what is a %T?", obj)
	}
	must(w.t, err)
}

// ingress makes an Ingress of a manifest's metadata and spec.
func (w *world) ingress(text string) {
	w.t.Helper()
	ing := &networkingv1.Ingress{}
	must(w.t, yaml.UnmarshalStrict([]byte(text), ing))
	ing.Namespace = "shop"
	w.create(ing)
}

// service makes a Service with port 80 and endpoints at these addresses, NODE=ADDR:PORT.
func (w *world) service(name string, endpoints ...string) {
	w.t.Helper()
	ctx := w.t.Context()
	_, err := w.client.CoreV1().Services("shop").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{})
	must(w.t, err)
	for i, ep := range endpoints {
		node, addr, _ := strings.Cut(ep, "=")
		ap := netip.MustParseAddrPort(addr)
		_, err := w.client.DiscoveryV1().EndpointSlices("shop").Create(ctx, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i), Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			Ports:      []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(ap.Port()))}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{ap.Addr().String()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		}, metav1.CreateOptions{})
		must(w.t, err)
	}
}

// ask sends a request for a host, by TLS if the URL says so, whatever its certificate.
func (w *world) ask(method, url string, body io.Reader, headers ...string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, body)
	must(w.t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := w.transport().RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func (w *world) transport() *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: w.authority.pool()},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			port := w.http
			if strings.HasSuffix(addr, ":443") {
				port = w.https
			}
			return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
		},
	}
}

// until asks until the answer is as wanted: the proxy follows the cluster a moment later.
func (w *world) until(want int, url string) (resp *http.Response, text string) {
	w.t.Helper()
	poll(w.t, func() error {
		var err error
		if resp, text, err = w.ask("GET", url, nil); err == nil && resp.StatusCode != want {
			err = fmt.Errorf("%s: %d %s, want %d", url, resp.StatusCode, text, want)
		}
		return err
	})
	return resp, text
}

// backend says its name and how it was asked.
func backendServer(t *testing.T, name string) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(400)
			return
		}
		w.Header().Set("Backend", name)
		json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "uri": r.RequestURI, "header": r.Header, "body": string(body), "method": r.Method})
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

type seen struct {
	Host, URI, Body, Method string
	Header                  http.Header
}

const oneRule = `{metadata: {name: one, annotations: {%s}}, spec: {rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}}`

func TestProxyAnswers(t *testing.T) {
	w := newWorld(t, nil)
	if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http)); err == nil {
		t.Fatal("a port is open, and there is no Ingress")
	}
	w.service("web", "n1="+backendServer(t, "web"))
	w.ingress(fmt.Sprintf(oneRule, ""))
	w.until(200, "http://a.example/")
	if _, text := w.until(404, "http://b.example/"); !strings.Contains(text, "no Ingress") {
		t.Errorf("got %q", text)
	}
	resp, text, err := w.ask("POST", "http://A.Example/x%2Fy/?a=1;b=2&c", strings.NewReader("hello"), "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: gopher", "Connection: X-Secret", "X-Secret: 1")
	must(t, err)
	var got seen
	must(t, json.Unmarshal([]byte(text), &got))
	if resp.Header.Get("Backend") != "web" || got.Host != "A.Example" || got.URI != "/x%2Fy/?a=1;b=2&c" || got.Body != "hello" || got.Method != "POST" {
		t.Errorf("the backend saw %+v", got)
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "A.Example", "X-Forwarded-Port": fmt.Sprint(w.http), "X-Secret": "",
	} {
		if got.Header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.Header.Get(name), want)
		}
	}
	// TLS with a certificate of the cluster's CA, by HTTP/2.
	resp, text, err = w.ask("GET", "https://a.example/", nil)
	must(t, err)
	must(t, json.Unmarshal([]byte(text), &got))
	if resp.ProtoMajor != 2 || got.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("by TLS: %s, %v", resp.Proto, got.Header)
	}
	poll(t, func() error {
		for _, want := range []string{`"status":404`, `"ingress":"shop/one"`, `"uri":"/x%2Fy/?a=1;b=2&c"`, `"protocol":"HTTP/2.0"`} {
			if !strings.Contains(w.access.String(), want) {
				return fmt.Errorf("no %s in the access log:\n%s", want, w.access)
			}
		}
		return nil
	})
	poll(t, func() error {
		node, err := w.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if want := fmt.Sprintf("%d,%d", w.http, w.https); err == nil && node.Annotations[PortsAnnotation] != want {
			err = fmt.Errorf("the Node says %v, want %s", node.Annotations, want)
		}
		return err
	})
	must(t, w.client.NetworkingV1().Ingresses("shop").Delete(t.Context(), "one", metav1.DeleteOptions{}))
	poll(t, func() error {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http)); err == nil {
			conn.Close()
			return fmt.Errorf("the port is open after the last Ingress")
		}
		return nil
	})
	poll(t, func() error {
		node, err := w.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err == nil && node.Annotations[PortsAnnotation] != "" {
			err = fmt.Errorf("the Node still says %v", node.Annotations)
		}
		return err
	})
}

func TestTrustedProxy(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	w.service("web", "n1="+backendServer(t, "web"))
	w.ingress(fmt.Sprintf(oneRule, ""))
	w.until(200, "http://a.example/")
	_, text, err := w.ask("GET", "http://a.example/", nil, "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https")
	must(t, err)
	var got seen
	must(t, json.Unmarshal([]byte(text), &got))
	if got.Header.Get("X-Forwarded-For") != "6.6.6.6, 127.0.0.1" || got.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("got %v", got.Header)
	}
	poll(t, func() error {
		if want := `"client":"6.6.6.6"`; !strings.Contains(w.access.String(), want) {
			return fmt.Errorf("no %s in the access log:\n%s", want, w.access)
		}
		return nil
	})
}

// A client is who has come to the outermost trusted proxy, whatever it says of itself.
func TestClientAddress(t *testing.T) {
	h := &handler{cfg: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	for _, tt := range []struct {
		remote    string
		forwarded []string
		want      string
	}{
		{"7.7.7.7:80", nil, "7.7.7.7"},
		{"7.7.7.7:80", []string{"6.6.6.6"}, "7.7.7.7"},
		{"7.7.7.7:80", []string{"10.0.0.1"}, "7.7.7.7"},
		{"10.0.0.1:80", nil, "10.0.0.1"},
		{"10.0.0.1:80", []string{"7.7.7.7"}, "7.7.7.7"},
		{"10.0.0.1:80", []string{"6.6.6.6, 7.7.7.7"}, "7.7.7.7"},
		{"10.0.0.1:80", []string{"6.6.6.6", "7.7.7.7 , fd00::1"}, "7.7.7.7"},
		{"[fd00::1]:80", []string{"10.0.0.9, 7.7.7.7"}, "7.7.7.7"},
		{"[::ffff:10.0.0.1]:80", []string{"::ffff:7.7.7.7"}, "7.7.7.7"},
		{"10.0.0.1:80", []string{"7.7.7.7, unknown"}, "10.0.0.1"},
		{"10.0.0.1:80", []string{"unknown, 10.0.0.2"}, "10.0.0.2"},
	} {
		r := &http.Request{RemoteAddr: tt.remote, Header: http.Header{"X-Forwarded-For": tt.forwarded}}
		if have := h.clientOf(r); have != tt.want {
			t.Errorf("from %s, forwarded for %q: %s, want %s", tt.remote, tt.forwarded, have, tt.want)
		}
	}
}

// Who came to a trusted proxy by TLS is not sent to TLS again; of others the header is not believed.
func TestRedirectBehindTrustedProxy(t *testing.T) {
	for trusted, want := range map[string]int{"127.0.0.0/8": http.StatusOK, "192.0.2.0/24": http.StatusPermanentRedirect} {
		w := newWorld(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(trusted)} })
		w.service("web", "n1="+backendServer(t, "web"))
		w.ingress(`{metadata: {name: one}, spec: {tls: [{hosts: [a.example]}], rules: [
		  {host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}`)
		w.until(http.StatusPermanentRedirect, "http://a.example/")
		for proto, want := range map[string]int{"https": want, "http": http.StatusPermanentRedirect} {
			resp, _, err := w.ask("GET", "http://a.example/", nil, "X-Forwarded-Proto: "+proto)
			must(t, err)
			if resp.StatusCode != want {
				t.Errorf("proxies in %s are trusted, X-Forwarded-Proto %s: %d, want %d", trusted, proto, resp.StatusCode, want)
			}
		}
	}
}

func TestTLS(t *testing.T) {
	w := newWorld(t, nil)
	w.service("web", "n1="+backendServer(t, "web"))
	cert := w.authority.secret(t, "a.example")
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1"}, Type: corev1.SecretTypeTLS, Data: cert})
	w.ingress(`{metadata: {name: one}, spec: {tls: [{hosts: [a.example], secretName: a}, {hosts: ["*.b.example"]}], rules: [
	  {host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}},
	  {host: "*.b.example", http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}},
	  {host: c.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}`)
	w.until(200, "http://c.example/")
	for host, want := range map[string]string{"a.example": "secret a.example", "x.b.example": "issued *.b.example", "c.example": "issued c.example", "unknown.example": "issued ", "": "issued "} {
		var conn *tls.Conn
		poll(t, func() (err error) { // one port opens after the other
			conn, err = tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.https), &tls.Config{ServerName: host, InsecureSkipVerify: true})
			return err
		})
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q is shown the certificate %q, want %q", host, got, want)
		}
		conn.Close()
	}
	resp, _ := w.until(308, "http://a.example/x?y=z")
	if got, want := resp.Header.Get("Location"), fmt.Sprintf("https://a.example:%d/x?y=z", w.https); got != want {
		t.Errorf("redirected to %s, want %s", got, want)
	}
	w.until(200, "https://x.b.example/")
	// A Secret that changes is shown at once; one that breaks is complained about.
	secrets := w.client.CoreV1().Secrets("shop")
	_, err := secrets.Update(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop", ResourceVersion: "2"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}}, metav1.UpdateOptions{})
	must(t, err)
	poll(t, func() error {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.https), &tls.Config{ServerName: "a.example", InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "issued a.example" {
			return fmt.Errorf("certificate %q", got)
		}
		if !strings.Contains(w.log.String(), "shop/a holds no certificate") {
			return fmt.Errorf("nothing is said of the Secret: %s", w.log)
		}
		return nil
	})
}

// After the last Ingress nothing of the table is kept, and the Secrets are read anew by the next one.
func TestAfterTheLastIngress(t *testing.T) {
	w := newWorld(t, nil)
	w.service("web", "n1="+backendServer(t, "web"))
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1"}, Type: corev1.SecretTypeTLS, Data: w.authority.secret(t, "a.example")})
	open := func() {
		t.Helper()
		w.ingress(`{metadata: {name: one}, spec: {tls: [{hosts: [a.example], secretName: a}], rules: [
		  {host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}`)
		w.until(http.StatusPermanentRedirect, "http://a.example/")
		var conn *tls.Conn
		poll(t, func() (err error) { // one port opens after the other
			conn, err = tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.https), &tls.Config{ServerName: "a.example", InsecureSkipVerify: true})
			return err
		})
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "secret a.example" {
			t.Errorf("certificate %q", got)
		}
	}
	watches := func() (n int) {
		for _, a := range w.client.Actions() {
			if a.Matches("watch", "secrets") {
				n++
			}
		}
		return n
	}
	open()
	before := watches()
	must(t, w.client.NetworkingV1().Ingresses("shop").Delete(t.Context(), "one", metav1.DeleteOptions{}))
	poll(t, func() error {
		if r, _ := w.proxy.handler.Load().table.Load().match("a.example", "/"); r != nil {
			return fmt.Errorf("there is still a route: %+v", r)
		}
		w.proxy.certs.mu.Lock()
		defer w.proxy.certs.mu.Unlock()
		if n := len(w.proxy.certs.secrets); n > 0 {
			return fmt.Errorf("%d certificates are kept", n)
		}
		return nil
	})
	open()
	if got := watches(); got != before+1 {
		t.Errorf("Secrets were watched %d times, and %d times after the next Ingress", before, got)
	}
}

func TestBackendsThatFail(t *testing.T) {
	gone := fmt.Sprintf("127.0.0.1:%d", freePort(t)) // nobody listens there
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	var hung atomic.Int32
	resetting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hung.Add(1)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	}))
	t.Cleanup(resetting.Close)
	w := newWorld(t, nil)
	w.service("web", "n1="+gone, "n1="+backendServer(t, "web"))
	w.service("gone", "n1="+gone)
	w.service("slow", "n1="+slow.Listener.Addr().String())
	w.service("resetting", "n1="+resetting.Listener.Addr().String(), "n1="+resetting.Listener.Addr().String())
	w.service("empty")
	w.ingress(`
metadata: {name: one, annotations: {ingress.rookery.io/max-body-size: "10"}}
spec: {rules: [{host: a.example, http: {paths: [
  {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}},
  {path: /gone, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}},
  {path: /empty, pathType: Prefix, backend: {service: {name: empty, port: {number: 80}}}},
  {path: /resetting, pathType: Prefix, backend: {service: {name: resetting, port: {number: 80}}}},
  {path: /noport, pathType: Prefix, backend: {service: {name: web, port: {number: 81}}}},
  {path: /none, pathType: Prefix, backend: {service: {name: none, port: {number: 80}}}}]}}]}`)
	w.ingress(`{metadata: {name: two, annotations: {ingress.rookery.io/timeout: 300ms}}, spec: {rules: [{host: a.example, http: {paths: [{path: /slow, pathType: Prefix, backend: {service: {name: slow, port: {number: 80}}}}]}}]}}`)
	w.until(200, "http://a.example/")
	for range 20 { // half of them meet the dead one first
		resp, text, err := w.ask("POST", "http://a.example/", strings.NewReader("0123456789"))
		must(t, err)
		if resp.StatusCode != 200 || !strings.Contains(text, `"body":"0123456789"`) {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
	}
	for path, want := range map[string]int{"/gone": 502, "/slow": 504, "/empty": 503, "/noport": 503, "/none": 503} {
		w.until(want, "http://a.example"+path)
	}
	// What may have arrived is not sent again.
	resp, _, err := w.ask("POST", "http://a.example/resetting", strings.NewReader("x"))
	must(t, err)
	if resp.StatusCode != 502 || hung.Load() != 1 {
		t.Errorf("%d, asked %d times", resp.StatusCode, hung.Load())
	}
	for _, body := range []io.Reader{strings.NewReader("0123456789A"), struct{ io.Reader }{strings.NewReader("0123456789A")}} { // with and without a length
		resp, _, err := w.ask("POST", "http://a.example/", body)
		must(t, err)
		if resp.StatusCode != 413 {
			t.Errorf("a body that is too large: %d", resp.StatusCode)
		}
	}
}

// When gossip says that a peer is dead, its endpoints get nothing any more, and who waits
// for one of them is told at once.
func TestDeadPeer(t *testing.T) {
	arrived := make(chan struct{}, 1)
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(stuck.Close)
	w := newWorld(t, nil)
	w.service("web", "n2="+stuck.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, ""))
	answer := make(chan int, 1)
	go func() {
		for t.Context().Err() == nil {
			if resp, _, err := w.ask("GET", "http://a.example/", nil); err == nil && resp.StatusCode != 404 && resp.StatusCode != 503 {
				answer <- resp.StatusCode
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	<-arrived
	w.dead.Store(ptr.To("n2"))
	w.changed <- struct{}{}
	if code := <-answer; code != 502 {
		t.Errorf("who waited got %d", code)
	}
	w.until(503, "http://a.example/")
}

func TestWebSocketAndStreams(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			fmt.Fprint(w, "first ")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(conn, buf)
	}))
	t.Cleanup(srv.Close)
	w := newWorld(t, nil)
	w.service("web", "n1="+srv.Listener.Addr().String())
	w.ingress(fmt.Sprintf(oneRule, "ingress.rookery.io/timeout: 2s"))
	// The beginning of a stream comes without its end.
	poll(t, func() error {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://a.example/", nil)
		must(t, err)
		resp, err := w.transport().RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("%d", resp.StatusCode)
		}
		first := make([]byte, 6)
		_, err = io.ReadFull(resp.Body, first)
		return err
	})
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.http))
	must(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	must(t, err)
	if resp.StatusCode != 101 {
		t.Fatalf("%s", resp.Status)
	}
	began := time.Now()
	for time.Since(began) < 2500*time.Millisecond { // longer than a response may take to begin
		fmt.Fprint(conn, "ping\n")
		time.Sleep(20 * time.Millisecond)
		if line, err := in.ReadString('\n'); err != nil || line != "ping\n" {
			t.Fatalf("after %s: %q %v", time.Since(began), line, err)
		}
	}
	// It does not outlive the ports for long.
	must(t, w.client.NetworkingV1().Ingresses("shop").Delete(t.Context(), "one", metav1.DeleteOptions{}))
	must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	if line, err := in.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the last Ingress: %q %v", line, err)
	}
}

func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	must(t, err)
	w := newWorld(t, func(c *Config) { c.HTTP = uint16(taken.Addr().(*net.TCPAddr).Port) })
	w.http = uint16(taken.Addr().(*net.TCPAddr).Port)
	w.service("web", "n1="+backendServer(t, "web"))
	w.ingress(fmt.Sprintf(oneRule, ""))
	w.until(200, "https://a.example/") // the other port is there
	poll(t, func() error {
		if !strings.Contains(w.log.String(), "ss -lntp sport = :") {
			return fmt.Errorf("the log has no cure: %s", w.log)
		}
		return nil
	})
	must(t, taken.Close())
	w.until(200, "http://a.example/")
}

func TestStatus(t *testing.T) {
	client := fake.NewSimpleClientset()
	ctx, cancel := context.WithCancel(t.Context())
	for i, name := range []string{"n1", "n2", "n3"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{PortsAnnotation: "80,443"}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", i+1)}}}}
		if name == "n3" {
			node.Annotations = nil // its ports are somebody else's
		}
		_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		must(t, err)
	}
	ing := &networkingv1.Ingress{}
	must(t, yaml.Unmarshal([]byte(fmt.Sprintf(oneRule, "")), ing))
	ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "none"}, {Hosts: []string{"a.example"}, SecretName: "broken"}}
	_, err := client.CoreV1().Secrets("shop").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "broken"}, Data: map[string][]byte{"tls.crt": []byte("x")}}, metav1.CreateOptions{})
	must(t, err)
	_, err = client.NetworkingV1().Ingresses("shop").Create(ctx, ing, metav1.CreateOptions{})
	must(t, err)
	factory := informers.NewSharedInformerFactory(client, 0)
	var dead, hidden atomic.Bool
	changed := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- Status(ctx, Config{
			Node: "n1", Client: client, Informers: factory, StartInformers: func() {}, Changed: changed,
			Alive:  func(node string) bool { return node != "n2" || !dead.Load() },
			Hidden: func(node string) bool { return node == "n1" && hidden.Load() }, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	addresses := func(want string) {
		t.Helper()
		poll(t, func() error {
			ing, err := client.NetworkingV1().Ingresses("shop").Get(ctx, "one", metav1.GetOptions{})
			if err != nil {
				return err
			}
			var got []string
			for _, at := range ing.Status.LoadBalancer.Ingress {
				got = append(got, at.IP)
			}
			if strings.Join(got, " ") != want {
				return fmt.Errorf("addresses %v, want %s", got, want)
			}
			return nil
		})
	}
	addresses("192.0.2.1 192.0.2.2")
	hidden.Store(true)
	changed <- struct{}{}
	addresses("192.0.2.2")
	dead.Store(true)
	changed <- struct{}{}
	addresses("192.0.2.1") // hidden, but there is no other
	hidden.Store(false)
	class, err := client.NetworkingV1().IngressClasses().Get(ctx, ClassName, metav1.GetOptions{})
	must(t, err)
	if class.Spec.Controller != ControllerName || class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] != "true" {
		t.Errorf("class %+v", class)
	}
	poll(t, func() error {
		events, err := client.CoreV1().Events("shop").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var said []string
		for _, e := range events.Items {
			said = append(said, e.Message)
		}
		all := strings.Join(said, "\n")
		for _, want := range []string{"no Service shop/web", "no Secret shop/none", "Secret shop/broken has no tls.crt and tls.key"} {
			if strings.Count(all, want) != 1 || len(said) != 3 {
				return fmt.Errorf("events:\n%s\nwant one with %q, three in all", all, want)
			}
		}
		return nil
	})
	cancel()
	must(t, <-done)
}

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) sign(name string, hosts ...string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: hosts, NotAfter: time.Now().Add(2000 * time.Hour)}, a.cert, key.Public(), a.key)
	return der, key, err
}

func (a *authority) issue(names []string, _ []netip.Addr) (*tls.Certificate, error) {
	der, key, err := a.sign("issued "+strings.Join(names, " "), names...)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (a *authority) secret(t *testing.T, host string) map[string][]byte {
	der, key, err := a.sign("secret "+host, host)
	must(t, err)
	raw, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	return map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}),
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func poll(t *testing.T, what func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %v", err)
		}
	}
}

func freePort(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
