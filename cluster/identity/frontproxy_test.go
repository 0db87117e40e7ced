package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

func TestFrontProxy(t *testing.T) {
	id, err := Create(t.TempDir(), Options{Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	ca, cert, key, err := id.FrontProxy()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	if !known.AppendCertsFromPEM(ca) {
		t.Fatalf("not a certificate: %s", ca)
	}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: known, KeyUsages: client}); err != nil || leaf.Subject.CommonName != FrontProxyName {
		t.Errorf("certificate of %q: %v", leaf.Subject.CommonName, err)
	}
	if leaf.NotAfter.Before(time.Now().Add(5 * year)) {
		t.Errorf("it ends %s", leaf.NotAfter)
	}

	// Each way round: users are no front proxy, and the front proxy is no user.
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: id.Pool(), KeyUsages: client}); err == nil {
		t.Error("the cluster's CA vouches for the front proxy")
	}
	userCert, userKey, err := id.IssueClient(FrontProxyName, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	user, err := tls.X509KeyPair(userCert, userKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := user.Leaf.Verify(x509.VerifyOptions{Roots: known, KeyUsages: client}); err == nil {
		t.Error("a user's certificate with the front proxy's name passes as the front proxy")
	}
}

// Peers that share the CA show the same front proxy CA, also after a restart; another cluster does not.
func TestFrontProxyIsTheClusters(t *testing.T) {
	dir := t.TempDir()
	id, err := Create(dir, Options{Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Create(t.TempDir(), Options{Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	var all [3][]byte
	for i, id := range []*Identity{id, again, other} {
		if all[i], _, _, err = id.FrontProxy(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("two peers of a cluster have two CAs")
	}
	if bytes.Equal(all[0], all[2]) {
		t.Error("two clusters have one CA")
	}
}
