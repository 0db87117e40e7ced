package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"path/filepath"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Name is the peer's name.
func (id *Identity) Name() string { return id.name }

// Fingerprint is that of the peer's key, see [PublicFingerprint].
func (id *Identity) Fingerprint() string { return id.fp }

// Dir is the data directory.
func (id *Identity) Dir() string { return id.dir }

// Settings are those of the cluster.
func (id *Identity) Settings() Settings { return id.settings }

// CA is the cluster's certificate authority.
func (id *Identity) CA() *x509.Certificate { return id.ca.cert }

// CAPEM is [Identity.CA] in PEM, for kubeconfigs and root-ca ConfigMaps.
func (id *Identity) CAPEM() []byte { return encodeCert(id.ca.cert.Raw) }

// CAKey signs certificates; the CertificateSigningRequest controllers need it.
func (id *Identity) CAKey() *ecdsa.PrivateKey { return id.ca.key }

// CAFiles are where the CA's certificate and key are, PEM.
func (id *Identity) CAFiles() (cert, key string) {
	return filepath.Join(id.dir, "pki", "ca.crt"), filepath.Join(id.dir, "pki", "ca.key")
}

// Pool holds the CA alone.
func (id *Identity) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(id.ca.cert)
	return p
}

// Pin is that of the CA, see [Pin].
func (id *Identity) Pin() [PinSize]byte { return Pin(id.ca.cert) }

// ServiceAccountKey signs service account tokens (ES256); its public part checks them.
func (id *Identity) ServiceAccountKey() *ecdsa.PrivateKey { return id.sa }

// ServiceAccountPublicKey checks service account tokens.
func (id *Identity) ServiceAccountPublicKey() *ecdsa.PublicKey { return &id.sa.PublicKey }

// GossipKey is a copy of the 32 bytes that encrypt gossip.
func (id *Identity) GossipKey() []byte { return bytes.Clone(id.gossip) }

// WireGuardKey is the peer's private one.
func (id *Identity) WireGuardKey() wgtypes.Key { return id.wireguard }

// SetClock replaces the clock by which certificates are issued; for tests. It
// must be called before the identity is shared.
func (id *Identity) SetClock(now func() time.Time) { id.ca.now = now }
