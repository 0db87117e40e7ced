package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/capabilities"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// TestMain sets what is global to a process as cmd does.
func TestMain(m *testing.M) {
	capabilities.Setup(true, 0)
	os.Exit(m.Run())
}

// peer is a server that runs until the test ends.
type peer struct {
	*apiserver.Server
	admin    kubernetes.Interface
	ca       authority
	tokenKey *ecdsa.PrivateKey
	stop     func() // ends Run and waits for it
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func start(t *testing.T, store raftstore.Store, change ...func(*apiserver.Config)) *peer {
	t.Helper()
	ca := newAuthority(t)
	cfg := apiserver.Config{Store: store, Logger: slog.New(slog.DiscardHandler), TokenKey: newKey(t), ClientCAs: x509.NewCertPool()}
	cfg.ClientCAs.AddCert(ca.cert)
	for _, c := range change {
		c(&cfg)
	}
	server, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stopped := false
	p := &peer{Server: server, ca: ca, tokenKey: cfg.TokenKey, admin: client(t, server.ClientConfig("admin", "system:masters"))}
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("run has not ended")
		}
	}
	t.Cleanup(p.stop)
	eventually(t, "server ready", func() bool { return server.Ready() == nil })
	if err := server.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}} // no controller runs here
	if _, err := p.admin.CoreV1().ServiceAccounts("default").Create(ctx, account, metav1.CreateOptions{}); err != nil && !exists(err) {
		if _, there := p.admin.CoreV1().ServiceAccounts("default").Get(ctx, account.Name, metav1.GetOptions{}); there != nil {
			t.Fatal(err)
		}
	}
	return p
}

func client(t *testing.T, cfg *clientrest.Config) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 20 s: %s", what)
}

// listen serves the peer over TLS and returns a configuration without credentials.
func (p *peer) listen(t *testing.T) *clientrest.Config {
	t.Helper()
	server := httptest.NewUnstartedServer(p.Handler())
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { p.stop(); server.Close() })
	return &clientrest.Config{Host: server.URL, QPS: -1, TLSClientConfig: clientrest.TLSClientConfig{Insecure: true}}
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
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(1e6 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

// sign returns TLS client data for a user, valid until the given time.
func (a authority) sign(t *testing.T, until time.Time, name string, groups ...string) clientrest.TLSClientConfig {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups}, NotBefore: time.Unix(1e9, 0), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return clientrest.TLSClientConfig{
		Insecure: true,
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}),
	}
}
