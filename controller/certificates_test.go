package controller_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// writeCA makes a CA and returns its files.
func writeCA(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(1e5 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, private.Public(), private)
	must(t, err)
	secret, err := x509.MarshalECPrivateKey(private)
	must(t, err)
	cert, key = filepath.Join(t.TempDir(), "ca.crt"), filepath.Join(t.TempDir(), "ca.key")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key
}

func request(t *testing.T, name, user string, groups ...string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user, Organization: groups}}, private)
	must(t, err)
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}
}

func (c *cluster) certificates(t *testing.T) {
	ctx, requests := t.Context(), c.admin.CertificatesV1().CertificateSigningRequests()
	for name, bad := range map[string]*certificatesv1.CertificateSigningRequest{
		"an administrator": request(t, "admin", "mallory", "system:masters"),
		"a peer":           request(t, "peer", "system:node:a", "system:nodes"),
		"half a peer":      request(t, "half", "mallory", "system:nodes"),
	} {
		if _, err := requests.Create(ctx, bad, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("request to become %s: %v, want 403", name, err)
		}
	}
	csr, err := requests.Create(ctx, request(t, "bob", "bob", "developers"), metav1.CreateOptions{})
	must(t, err)
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Known"}}
	_, err = requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	must(t, err)
	var issued []byte
	c.eventually("certificate is issued", func() bool {
		csr, err := requests.Get(ctx, "bob", metav1.GetOptions{})
		if err != nil {
			return false
		}
		issued = csr.Status.Certificate
		return len(issued) > 0
	})
	block, _ := pem.Decode(issued)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(c.ca.cert)
	must(t, err)
	roots.AppendCertsFromPEM(ca)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	must(t, err)
	if cert.Subject.CommonName != "bob" || cert.Subject.Organization[0] != "developers" {
		t.Errorf("certificate is for %v", cert.Subject)
	}
}
