package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	year = 365 * 24 * time.Hour
	// caLife and peerLife outlive the hardware they run on: nothing between
	// peers looks at dates, but kubectl and other outside clients do.
	caLife   = 30 * year
	peerLife = 10 * year
)

// notBefore is the beginning of Unix time, so that a certificate is valid on a
// board whose clock booted in 1970.
func notBefore() time.Time { return time.Unix(0, 0).UTC() }

// notAfter is now plus life, where a clock that says a time before this code was
// written is not believed: a CA made with the clock at 1970 must not have ended in 2000.
func notAfter(now time.Time, life time.Duration) time.Time {
	written := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if now.Before(written) {
		now = written
	}
	return now.Add(life).UTC()
}

func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func newCA(now time.Time) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	sn, err := serial()
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          sn,
		Subject:               pkix.Name{CommonName: "rookery-ca"},
		NotBefore:             notBefore(),
		NotAfter:              notAfter(now, caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read back the CA: %w", err)
	}
	return key, cert, nil
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

func (a *authority) sign(tmpl *x509.Certificate, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	sn, err := serial()
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = sn
	tmpl.NotBefore = notBefore()
	tmpl.NotAfter = notAfter(a.now(), life)
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	tmpl.BasicConstraintsValid = true
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", tmpl.Subject.CommonName, err)
	}
	return der, nil
}

// signPeer signs a peer's certificate: it serves the API and the peer port, and
// it is the client certificate towards other peers.
func (a *authority) signPeer(name string, pub crypto.PublicKey, s Settings, addrs []netip.Addr) ([]byte, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback}
	for _, ip := range s.ServiceIPs() {
		ips = append(ips, ip.AsSlice())
	}
	for _, ip := range addrs {
		b := net.IP(ip.Unmap().WithZone("").AsSlice())
		if ip.IsValid() && !ip.IsUnspecified() && !slices.ContainsFunc(ips, b.Equal) {
			ips = append(ips, b)
		}
	}
	return a.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: PeerUserPrefix + name, Organization: []string{PeerOrganization}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{name, PeerDNSName(name), "localhost", "kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "kubernetes.default.svc." + s.Domain},
		IPAddresses: ips,
	}, pub, peerLife)
}

// IssueServer makes a certificate with its key for a TLS server of the cluster, valid for
// ttl. It is refused for names by which peers and the API are known: who has an Ingress is neither.
func (id *Identity) IssueServer(names []string, addrs []netip.Addr, ttl time.Duration) (*tls.Certificate, error) {
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "rookery"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if reservedName(name, id.settings.Domain) {
			return nil, fmt.Errorf("%s is a name of the cluster itself, it gets no certificate as a server", name)
		}
		tmpl.DNSNames = append(tmpl.DNSNames, name)
	}
	for _, a := range addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, a.Unmap().WithZone("").AsSlice())
	}
	if len(names) > 0 && len(names[0]) <= 64 { // the longest that a common name may be
		tmpl.Subject.CommonName = names[0]
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := id.ca.sign(tmpl, key.Public(), ttl)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, id.ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// reservedName tells whether a peer's or the API's certificate could have this name, or
// one that a wildcard stands for.
func reservedName(name, domain string) bool {
	name = strings.ToLower(strings.TrimPrefix(name, "*."))
	for _, own := range []string{PeerDomain, domain, "svc", "localhost", "kubernetes.default"} {
		if strings.HasSuffix("."+name, "."+own) {
			return true
		}
	}
	return !strings.Contains(name, ".") // a peer's own name
}

// IssueClient makes a key and a client certificate (PEM) for a user of the
// Kubernetes API with the given groups, valid for ttl (0: as long as a peer's, 10 years).
// A peer's own identity cannot be issued this way.
func (id *Identity) IssueClient(user string, groups []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if user == "" {
		return nil, nil, fmt.Errorf("a client certificate needs a user name")
	}
	if strings.HasPrefix(user, PeerUserPrefix) || slices.Contains(groups, PeerOrganization) {
		return nil, nil, fmt.Errorf("user %q of groups %q would be a peer; a peer gets its certificate by `rookery up --join`", user, groups)
	}
	if ttl <= 0 {
		ttl = peerLife
	}
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := id.ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public(), ttl)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	return encodeCert(der), keyPEM, nil
}
