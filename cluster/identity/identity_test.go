package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func create(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	id, err := identity.Create(dir, identity.Options{Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestValidateName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "peer-1": true, "9": true, strings.Repeat("x", 63): true,
		"": false, "Peer": false, "a.b": false, "-a": false, "a-": false, "a_b": false, "ü": false, strings.Repeat("x", 64): false,
	} {
		err := identity.ValidateName(name)
		if (err == nil) != ok {
			t.Errorf("ValidateName(%q) = %v, want ok = %v", name, err, ok)
		}
		if err != nil && !strings.Contains(err.Error(), "--name") {
			t.Errorf("%q: the message lacks the cure: %v", name, err)
		}
	}
}

func TestCreateIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	a := create(t, dir)
	kube, err := os.ReadFile(a.KubeconfigPath())
	if err != nil {
		t.Fatal(err)
	}
	b := create(t, dir)
	again, err := os.ReadFile(b.KubeconfigPath())
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() != b.Fingerprint() || a.Pin() != b.Pin() || string(kube) != string(again) {
		t.Error("a second Create made something new")
	}
	if _, err := identity.Create(dir, identity.Options{Name: "two"}); err == nil || !strings.Contains(err.Error(), `"one"`) {
		t.Errorf("Create under another name: %v", err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	create(t, dir)
	for _, f := range []string{"pki/ca.key", "pki/sa.key", "pki/peer.key", "pki/gossip.key", "pki/wireguard.key", "admin.kubeconfig"} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, st.Mode())
		}
	}
	if err := os.Chmod(filepath.Join(dir, "pki/ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Load(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("Load of a readable key: %v", err)
	}
}

func TestLoadFindsDamage(t *testing.T) {
	other := t.TempDir()
	create(t, other)
	for _, f := range []string{"ca.crt", "ca.key", "sa.key", "sa.pub", "gossip.key", "peer.crt", "peer.key", "wireguard.key", "cluster.json"} {
		for _, how := range []string{"missing", "torn", "foreign"} {
			t.Run(f+" "+how, func(t *testing.T) {
				dir := t.TempDir()
				create(t, dir)
				path := filepath.Join(dir, "pki", f)
				foreign, err := os.ReadFile(filepath.Join(other, "pki", f))
				if err != nil {
					t.Fatal(err)
				}
				switch how {
				case "missing":
					err = os.Remove(path)
				case "torn":
					err = os.Truncate(path, 10)
				case "foreign":
					if f == "gossip.key" || f == "wireguard.key" || f == "cluster.json" {
						t.Skip("any one of these fits")
					}
					err = os.WriteFile(path, foreign, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				var damaged *identity.DamagedError
				if _, err := identity.Load(dir); !errors.As(err, &damaged) {
					t.Errorf("Load = %v, want a DamagedError", err)
				}
			})
		}
	}
}

// A creation that is cut off leaves a hidden folder, which is not an identity
// and does not hinder the next creation.
func TestCreateAfterCutOff(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, ".pki-123")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "ca.key"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Load(dir); !errors.Is(err, identity.ErrNone) {
		t.Errorf("Load = %v, want ErrNone", err)
	}
	create(t, dir)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("the leftover is still there: %v", err)
	}
	if _, err := identity.Load(dir); err != nil {
		t.Error(err)
	}
}

func TestCreateLeavesNothingWhereItCannotWrite(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Create(filepath.Join(file, "data"), identity.Options{Name: "one"}); err == nil {
		t.Error("Create below a file succeeded")
	}
}

func TestPeerCertificate(t *testing.T) {
	id := create(t, t.TempDir())
	leaf := id.Certificate().Leaf
	for _, name := range []string{"one", "one.peer.rookery", "localhost", "kubernetes.default.svc.cluster.local", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.7"} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: id.Pool(), DNSName: name})
		if err != nil {
			t.Errorf("the certificate does not do for %s: %v", name, err)
		}
	}
	if leaf.NotBefore.Unix() != 0 || time.Until(leaf.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
}

func TestCertificateFollowsTheAddress(t *testing.T) {
	id := create(t, t.TempDir())
	before := id.Certificate()
	for i := range 100 { // more addresses than a certificate takes
		addr := netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i+1))
		c, err := id.Cover(addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{addr.String(), "127.0.0.1", "10.43.0.1", "one.peer.rookery"} {
			if err := c.Leaf.VerifyHostname(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := id.Certificate()
	if identity.Fingerprint(before.Leaf) != identity.Fingerprint(after.Leaf) {
		t.Error("the key changed")
	}
	if again, err := id.Cover(netip.MustParseAddr("198.51.100.100")); err != nil || again != after {
		t.Errorf("a covered address was issued again: %v", err)
	}
}

// A board whose clock says 1970 makes a cluster that is valid later, and a peer that
// was issued now is accepted there.
func TestClocksDoNotMatter(t *testing.T) {
	id, err := identity.Create(t.TempDir(), identity.Options{Name: "old", Now: func() time.Time { return time.Unix(60, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Certificate().Leaf.Verify(x509.VerifyOptions{Roots: id.Pool(), DNSName: "old"}); err != nil {
		t.Errorf("a cluster made in 1970 is not valid now: %v", err)
	}
	cs := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{id.Certificate().Leaf}}
	if name, fp, err := id.VerifyPeer(cs); err != nil || name != "old" || fp != id.Fingerprint() {
		t.Errorf("VerifyPeer = %q %q %v", name, fp, err)
	}
}

func TestVerifyPeerRefuses(t *testing.T) {
	id, foreign := create(t, t.TempDir()), create(t, t.TempDir())
	certPEM, keyPEM, err := id.IssueClient("jane", []string{"developers"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		certs []*x509.Certificate
		want  error
	}{
		"none":           {nil, identity.ErrNoCertificate},
		"a user's":       {[]*x509.Certificate{client.Leaf}, identity.ErrNotPeer},
		"foreign CA":     {[]*x509.Certificate{foreign.Certificate().Leaf}, identity.ErrNotPeer},
		"the CA":         {[]*x509.Certificate{id.CA()}, identity.ErrNotPeer},
		"foreign chain":  {[]*x509.Certificate{foreign.Certificate().Leaf, foreign.CA()}, identity.ErrNotPeer},
		"chain is a lie": {[]*x509.Certificate{foreign.Certificate().Leaf, id.CA()}, identity.ErrNotPeer},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := id.VerifyPeer(&tls.ConnectionState{PeerCertificates: tc.certs}); !errors.Is(err, tc.want) {
				t.Errorf("VerifyPeer = %v, want %v", err, tc.want)
			}
		})
	}
	lie := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{foreign.Certificate().Leaf, id.CA()}}
	if err := identity.VerifyPinned(lie, id.Pin()); !errors.Is(err, identity.ErrNotPeer) {
		t.Errorf("VerifyPinned of a foreign peer with our CA = %v", err)
	}
}

func TestIssueClientMakesNoPeers(t *testing.T) {
	id := create(t, t.TempDir())
	for _, tc := range []struct {
		user   string
		groups []string
	}{{"", nil}, {"system:node:two", nil}, {"jane", []string{"system:nodes"}}} {
		if _, _, err := id.IssueClient(tc.user, tc.groups, 0); err == nil {
			t.Errorf("IssueClient(%q, %q) succeeded", tc.user, tc.groups)
		}
	}
}
