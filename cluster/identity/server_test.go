package identity

import (
	"crypto/x509"
	"net/netip"
	"testing"
	"time"
)

func TestIssueServer(t *testing.T) {
	id, err := Create(t.TempDir(), Options{Name: "h1", Settings: Settings{
		PodCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), DNS: netip.MustParseAddr("10.43.0.10"),
		Domain: "cluster.local", Backend: "wireguard",
	}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.IssueServer([]string{"shop.example", "*.apps.example"}, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shop.example", "x.apps.example", "192.0.2.1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: id.Pool()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: id.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("it is a client's certificate too")
	}
	for _, name := range []string{"h1", "localhost", "h2.peer.rookery", "*.peer.rookery", "peer.rookery", "Kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "cluster.local", "*.local", "*.default.svc", "*.default.svc.cluster.local"} {
		if _, err := id.IssueServer([]string{name}, nil, time.Hour); err == nil {
			t.Errorf("%s was issued", name)
		}
	}
}
