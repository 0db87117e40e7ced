package authentication

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"testing"
	"time"
)

// issue makes a client certificate, signed by ca unless that is nil.
func issue(t *testing.T, name, group string, notAfter time.Time, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: []string{group}},
		NotBefore: time.Unix(0, 0), NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if ca == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		ca, caKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// What was found good once is remembered; that it has been revoked or is over is noticed all the same.
func TestCertificatesAreRememberedNoLongerThanTheyHold(t *testing.T) {
	hour := time.Now().Add(time.Hour)
	ca, caKey := issue(t, "ca", "", hour, nil, nil)
	foreign, foreignKey := issue(t, "ca", "", hour, nil, nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	removed := map[string]bool{}
	c := newCertificates(roots, func(cert *x509.Certificate) bool { return removed[cert.Subject.CommonName] })
	ask := func(cert *x509.Certificate) string {
		resp, ok, err := c.AuthenticateRequest(&http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}})
		if !ok || err != nil {
			return ""
		}
		return resp.User.GetName()
	}
	admin, _ := issue(t, "admin", "system:masters", hour, ca, caKey)
	peer, _ := issue(t, "system:node:h1", "system:nodes", time.Unix(1, 0), ca, caKey)
	late, _ := issue(t, "late", "staff", time.Now().Add(-time.Minute), ca, caKey)
	soon, _ := issue(t, "soon", "staff", time.Now().Add(2*time.Second), ca, caKey)
	fake, _ := issue(t, "admin", "system:masters", hour, foreign, foreignKey)
	for range 2 {
		for cert, want := range map[*x509.Certificate]string{admin: "admin", peer: "system:node:h1", late: "", fake: "", soon: "soon"} {
			if got := ask(cert); got != want {
				t.Errorf("%s of %s: authenticated as %q, want %q", cert.Subject, cert.Issuer, got, want)
			}
		}
	}
	removed["system:node:h1"] = true
	if got := ask(peer); got != "" {
		t.Errorf("a removed peer is still %q", got)
	}
	for deadline := time.Now().Add(10 * time.Second); ask(soon) != ""; {
		if time.Now().After(deadline) {
			t.Fatal("a certificate that is over is still good")
		}
		time.Sleep(50 * time.Millisecond)
	}
}
