package identity

import (
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrNoCertificate says that the other side showed no certificate.
	ErrNoCertificate = errors.New("no certificate was shown")
	// ErrNotPeer says that a certificate is not a peer's of this cluster.
	ErrNotPeer = errors.New("not the certificate of a peer of this cluster")
	// ErrPin says that the other side is not of the cluster that the token is of.
	ErrPin = errors.New("the other side is not of the token's cluster")
)

// verifyChain returns the peer's name if leaf is a peer's certificate that ca
// signed for usage. Validity dates are not looked at: the clock asked is that
// of the certificate itself.
func verifyChain(ca, leaf *x509.Certificate, usage x509.ExtKeyUsage) (string, error) {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	at := leaf.NotBefore
	if at.Before(ca.NotBefore) {
		at = ca.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotPeer, err)
	}
	name, ok := strings.CutPrefix(leaf.Subject.CommonName, PeerUserPrefix)
	if !ok || leaf.IsCA || !slices.Contains(leaf.Subject.Organization, PeerOrganization) || ValidateName(name) != nil {
		return "", fmt.Errorf("%w: it is of %q", ErrNotPeer, leaf.Subject.CommonName)
	}
	return name, nil
}

// VerifyPeer returns the name and the key's fingerprint of the peer that showed
// its client certificate on a connection. [ErrNoCertificate], [ErrNotPeer]. Whether
// the peer has been removed since is not known here.
func (id *Identity) VerifyPeer(cs *tls.ConnectionState) (name, fingerprint string, err error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return "", "", ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	name, err = verifyChain(id.ca.cert, leaf, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return "", "", err
	}
	return name, Fingerprint(leaf), nil
}

// VerifyServer is [Identity.VerifyPeer] for the dialling side: the server must be the peer called name.
func (id *Identity) VerifyServer(cs *tls.ConnectionState, name string) (fingerprint string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return "", ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	got, err := verifyChain(id.ca.cert, leaf, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return "", err
	}
	if err := leaf.VerifyHostname(PeerDNSName(name)); err != nil || got != name {
		return "", fmt.Errorf("%w: dialled %s and reached %s", ErrNotPeer, name, got)
	}
	return Fingerprint(leaf), nil
}

// VerifyPinned checks a server's chain against a pin alone, as a joiner does who knows
// nothing else of the cluster: a CA of the chain has the pin and signed the
// server's peer certificate. [ErrPin] or [ErrNotPeer].
func VerifyPinned(cs *tls.ConnectionState, pin [PinSize]byte) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	for _, c := range cs.PeerCertificates[1:] {
		got := Pin(c)
		if c.IsCA && subtle.ConstantTimeCompare(got[:], pin[:]) == 1 {
			_, err := verifyChain(c, cs.PeerCertificates[0], x509.ExtKeyUsageServerAuth)
			return err
		}
	}
	return ErrPin
}
