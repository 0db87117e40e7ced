package ingress

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
)

// issuer is an ACME server (RFC 8555) as far as it takes: it checks the challenge http-01, and no signatures.
type issuer struct {
	*httptest.Server
	authority *authority
	fetch     func(url string) (string, error)

	mu      sync.Mutex
	host    string
	valid   bool
	cert    []byte
	orders  int
	invalid string // why the challenge failed
}

const token = "a-token_of-the-issuer-0"

func newIssuer(t *testing.T, a *authority, fetch func(string) (string, error)) *issuer {
	is := &issuer{authority: a, fetch: fetch}
	is.Server = httptest.NewServer(http.HandlerFunc(is.serve))
	t.Cleanup(is.Close)
	return is
}

func (is *issuer) count() int {
	is.mu.Lock()
	defer is.mu.Unlock()
	return is.orders
}

func (is *issuer) serve(w http.ResponseWriter, r *http.Request) {
	is.mu.Lock()
	defer is.mu.Unlock()
	w.Header().Set("Replay-Nonce", fmt.Sprint(time.Now().UnixNano()))
	var payload struct {
		Identifiers []struct{ Value string }
		CSR         string
	}
	if r.Method == "POST" {
		var jws struct{ Payload string }
		if err := json.NewDecoder(r.Body).Decode(&jws); err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		raw, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
		_ = json.Unmarshal(raw, &payload) // it may be empty
	}
	answer := func(code int, v map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(v)
	}
	order := func() map[string]any {
		o := map[string]any{"status": "pending", "authorizations": []string{is.URL + "/authz"}, "finalize": is.URL + "/finalize"}
		switch {
		case is.cert != nil:
			o["status"], o["certificate"] = "valid", is.URL+"/cert"
		case is.valid:
			o["status"] = "ready"
		}
		return o
	}
	status := "pending"
	if is.valid {
		status = "valid"
	} else if is.invalid != "" {
		status = "invalid"
	}
	challenge := map[string]any{"type": "http-01", "url": is.URL + "/challenge", "token": token, "status": status}
	switch r.URL.Path {
	case "/directory":
		answer(200, map[string]any{"newNonce": is.URL + "/nonce", "newAccount": is.URL + "/account", "newOrder": is.URL + "/new-order"})
	case "/nonce":
	case "/account":
		w.Header().Set("Location", is.URL+"/account/1")
		answer(201, map[string]any{"status": "valid"})
	case "/new-order":
		is.orders++
		is.host, is.valid, is.cert, is.invalid = payload.Identifiers[0].Value, false, nil, ""
		w.Header().Set("Location", is.URL+"/order")
		answer(201, order())
	case "/order":
		answer(200, order())
	case "/authz":
		answer(200, map[string]any{"status": status, "identifier": map[string]string{"type": "dns", "value": is.host}, "challenges": []any{challenge}})
	case "/challenge":
		text, err := is.fetch("http://" + is.host + challengePath + token)
		if is.valid = err == nil && strings.HasPrefix(text, token+"."); !is.valid {
			is.invalid = fmt.Sprintf("%q %v", text, err)
		}
		answer(200, challenge)
	case "/finalize":
		der, _ := base64.RawURLEncoding.DecodeString(payload.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: csr.Subject, DNSNames: csr.DNSNames, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
		if der, err = x509.CreateCertificate(rand.Reader, tmpl, is.authority.cert, csr.PublicKey, is.authority.key); err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		is.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		w.Header().Set("Location", is.URL+"/order")
		answer(200, order())
	case "/cert":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		w.Write(is.cert)
	default:
		http.NotFound(w, r)
	}
}

// The leader proves to an issuer that the host is the cluster's, and what it gets is
// shown by every peer.
func TestACME(t *testing.T) {
	var w *world
	is := newIssuer(t, newAuthority(t), func(url string) (string, error) {
		resp, text, err := w.ask("GET", url, nil)
		if err == nil && resp.StatusCode != 200 {
			err = fmt.Errorf("%s", resp.Status)
		}
		return text, err
	})
	var cfg Config
	w = newWorld(t, func(c *Config) {
		c.ACME = ACME{Directory: is.URL + "/directory", Email: "seal@example.com"}
		cfg = *c
	})
	w.service("web", "n1="+backendServer(t, "web"))
	w.ingress(`{metadata: {name: one, annotations: {ingress.rookery.io/acme: "true"}}, spec: {tls: [{hosts: [a.example], secretName: a}], rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}`)
	// The door is open, and nobody asked yet: what is no token of an order is the Ingress's, which has TLS.
	for _, path := range []string{token, "x", "../x"} {
		w.until(308, "http://a.example"+challengePath+path)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Informers = informers.NewSharedInformerFactory(w.client, 0)
	done := make(chan error, 1)
	go func() { done <- Certificates(ctx, cfg) }()
	defer func() { cancel(); must(t, <-done) }()
	shown := func() (*x509.Certificate, error) {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.https), &tls.Config{ServerName: "a.example", RootCAs: is.authority.pool()})
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0], nil
	}
	poll(t, func() error { _, err := shown(); return err })
	secret, err := w.client.CoreV1().Secrets("shop").Get(ctx, "a", metav1.GetOptions{})
	must(t, err)
	if secret.Type != corev1.SecretTypeTLS || !good(secret, []string{"a.example"}) || good(secret, []string{"b.example"}) {
		t.Errorf("the Secret is %v", secret)
	}
	w.until(308, "http://a.example"+challengePath+token) // the answer is taken away again
	if is.count() != 1 {
		t.Errorf("%d orders", is.count())
	}
}

// A Secret that somebody else made stays as it is; a failure is told once and tried later.
func TestACMELeavesAlone(t *testing.T) {
	var w *world
	is := newIssuer(t, newAuthority(t), func(string) (string, error) { return "", io.EOF })
	var cfg Config
	w = newWorld(t, func(c *Config) { c.ACME = ACME{Directory: is.URL + "/directory"}; cfg = *c })
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte("x")}})
	rule := `{metadata: {name: %s, annotations: {ingress.rookery.io/acme: "%s"}}, spec: {tls: [{hosts: [%s], secretName: %s}], rules: [{host: %[3]s, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}`
	w.ingress(fmt.Sprintf(rule, "theirs", "true", "theirs.example", "theirs"))
	w.ingress(fmt.Sprintf(rule, "off", "false", "off.example", "off"))
	w.ingress(fmt.Sprintf(rule, "wild", "true", "'*.example'", "wild"))
	w.ingress(fmt.Sprintf(rule, "fails", "true", "fails.example", "fails"))
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Informers = informers.NewSharedInformerFactory(w.client, 0)
	done := make(chan error, 1)
	go func() { done <- Certificates(ctx, cfg) }()
	poll(t, func() error {
		events, err := w.client.CoreV1().Events("shop").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var text string
		for _, e := range events.Items {
			text += e.InvolvedObject.Name + ": " + e.Message + "\n"
		}
		for _, want := range []string{"wild: no certificate by ACME: a wildcard host needs", "fails: no certificate by ACME: fails.example was not found to be ours"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no event %q in\n%s", want, text)
			}
		}
		return nil
	})
	cancel()
	must(t, <-done)
	secrets, err := w.client.CoreV1().Secrets("shop").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(secrets.Items) != 1 || string(secrets.Items[0].Data["tls.crt"]) != "x" {
		t.Errorf("Secrets: %v", secrets.Items)
	}
	if is.count() != 1 {
		t.Errorf("%d orders, of four Ingresses one is ours to order for", is.count())
	}
}
