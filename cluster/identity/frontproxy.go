package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
)

const (
	// FrontProxyName is the CN by which extension servers know the API's requests.
	FrontProxyName = "system:front-proxy"
	// frontProxyInfo separates the key that is derived for the front proxy from any
	// other that may ever be derived of the CA's.
	frontProxyInfo = "rookery front proxy CA, version 1"
)

// FrontProxy makes what this peer shows to extension servers, all in PEM: a
// certificate with its key, and the CA that they know it by. Who has that certificate
// may name any user to them, so it must not be the CA that signs users' certificates:
// that one would sign the name above for whoever may approve requests. The key of the
// other CA is derived from the first one's, so that every peer has it and nothing is
// stored or sent: whoever could derive it has the cluster's CA already.
//
// The CA is the same bytes on every peer. The certificate's key is new with each call.
func (id *Identity) FrontProxy() (ca, cert, key []byte, err error) {
	signer, caKey, err := id.frontProxyCA()
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	a := &authority{cert: signer, key: caKey, now: id.ca.now}
	der, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: FrontProxyName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, leaf.Public(), peerLife)
	if err != nil {
		return nil, nil, nil, err
	}
	if key, err = encodeKey(leaf); err != nil {
		return nil, nil, nil, err
	}
	return encodeCert(signer.Raw), encodeCert(der), key, nil
}

func (id *Identity) frontProxyCA() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := deriveKey(id.ca.key, frontProxyInfo)
	if err != nil {
		return nil, nil, fmt.Errorf("derive the front proxy's key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "rookery-front-proxy-ca"},
		NotBefore: notBefore(), NotAfter: id.ca.cert.NotAfter,
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), repeatable{key})
	if err != nil {
		return nil, nil, fmt.Errorf("sign the front proxy's CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read back the front proxy's CA: %w", err)
	}
	return cert, key, nil
}

// deriveKey makes another key of a key (HKDF, RFC 5869).
func deriveKey(from *ecdsa.PrivateKey, info string) (*ecdsa.PrivateKey, error) {
	secret, err := from.Bytes()
	if err != nil {
		return nil, err
	}
	// One in 2^32 strings is no key of P-256; then the next is taken.
	for i := range 8 {
		raw, err := hkdf.Key(sha256.New, secret, nil, fmt.Sprintf("%s, %d", info, i), 32)
		if err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("no key in eight tries")
}

// repeatable signs the same with the same bytes each time (RFC 6979): every peer's
// certificate of the front proxy's CA has to be the same, or each new leader would
// write its own for all extension servers.
type repeatable struct{ *ecdsa.PrivateKey }

func (r repeatable) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.PrivateKey.Sign(nil, digest, opts)
}
