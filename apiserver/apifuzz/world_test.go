package apifuzz

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/capabilities"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// TestMain sets what is global to a process as cmd does.
func TestMain(m *testing.M) {
	capabilities.Setup(true, 0)
	utilruntime.ReallyCrash = false
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// world is one peer's API behind a TLS port, and those who ask it.
type world struct {
	server  *apiserver.Server
	store   raftstore.Store
	admin   kubernetes.Interface
	panics  *panics
	address string
	callers map[string]*caller
	agent   *agent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{panics: newPanics(), agent: newAgent(t)}
	w.store = rafttest.NewCluster(t, nil, "a").Peers()["a"]
	ca := newAuthority(t)
	cfg := apiserver.Config{
		Store: w.store, Logger: slog.New(w.panics), TokenKey: newKey(t), ClientCAs: x509.NewCertPool(), Kubelet: w.agent.find,
		RequestTimeout: 20 * time.Second, // sooner than the default, so that what hangs is seen
	}
	cfg.ClientCAs.AddCert(ca.cert)
	server, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.server = server
	w.run(t)
	w.listen(t)
	if w.admin, err = kubernetes.NewForConfig(server.ClientConfig("admin", "system:masters")); err != nil {
		t.Fatal(err)
	}
	w.furnish(t)
	w.enroll(t, ca)
	return w
}

// run starts the server as cmd does.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	rafttest.Eventually(t, "server ready", func() bool { return w.server.Ready() == nil })
	if err := w.server.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}
}

// listen serves with the limits that cmd sets.
func (w *world) listen(t *testing.T) {
	t.Helper()
	server := httptest.NewUnstartedServer(w.server.Handler())
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.EnableHTTP2 = true
	server.Config.ReadHeaderTimeout, server.Config.IdleTimeout, server.Config.MaxHeaderBytes = 10*time.Second, 2*time.Minute, 1<<20
	server.Config.ErrorLog = log.New(w.panics, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	w.address = server.Listener.Addr().String()
}

// furnish makes what requests refer to by name.
func (w *world) furnish(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	ignore := func(_ any, err error) {
		if err != nil && metav1.StatusReasonAlreadyExists != reason(err) {
			t.Fatal(err)
		}
	}
	for _, ns := range namespaces() {
		ignore(w.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}))
		ignore(w.admin.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))
	}
	ignore(w.admin.CoreV1().ServiceAccounts("kube-system").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "fuzz"}}, metav1.CreateOptions{}))
}

// enroll gives each kind of user their credentials.
func (w *world) enroll(t *testing.T, ca authority) {
	t.Helper()
	w.callers = map[string]*caller{
		"admin":     {cert: ca.sign(t, "root", "system:masters")},
		"peer":      {cert: ca.sign(t, "system:node:f0", "system:nodes")},
		"user":      {cert: ca.sign(t, "alice", "people")},
		"account":   {},
		"impostor":  {},
		"anonymous": {},
	}
	for _, c := range w.callers {
		c.dial(t, w.address)
	}
	w.admit(t)
}

// admit gives the service account a token, for the case that a request has deleted the
// account and the one that is there now is another.
func (w *world) admit(t *testing.T) {
	t.Helper()
	made, err := w.admin.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "fuzz", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := made.Status.Token
	w.callers["account"].token, w.callers["impostor"].token = token, token[:len(token)-8]+"AAAAAAAA"
}

// agent plays nodes' agents that answer every request in another bad way.
type agent struct{ *httptest.Server }

func newAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{httptest.NewUnstartedServer(http.HandlerFunc(misbehave))}
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.Start()
	t.Cleanup(func() { a.CloseClientConnections(); a.Close() })
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority signs client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, NotAfter: time.Now().Add(1e4 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return authority{certify(t, tmpl, tmpl, key, key), key}
}

// sign returns a client certificate.
func (a authority) sign(t *testing.T, name string, groups ...string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups}, NotAfter: time.Now().Add(1e4 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert := certify(t, tmpl, a.cert, key, a.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func certify(t *testing.T, tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// caller is a user: a certificate, a token or neither, with a client of each protocol.
type caller struct {
	cert          *tls.Certificate
	token         string
	first, second *http.Client // HTTP/1.1, HTTP/2
	tls           *tls.Config
}

func (c *caller) dial(t *testing.T, address string) {
	t.Helper()
	c.tls = &tls.Config{InsecureSkipVerify: true}
	if c.cert != nil {
		c.tls.Certificates = []tls.Certificate{*c.cert}
	}
	client := func(h2 bool) *http.Client {
		tr := &http.Transport{TLSClientConfig: c.tls.Clone(), ForceAttemptHTTP2: h2, MaxIdleConnsPerHost: workers, DisableCompression: true}
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
		if !h2 {
			tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	c.first, c.second = client(false), client(true)
}
