package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// pendingFile keeps the joiner's keys between the request and the answer, so that a
// join that was cut off is, when repeated, the same peer and not a second one of the same name.
const pendingFile = "join.pending"

type pending struct {
	Key       []byte `json:"key"`
	WireGuard string `json:"wireguard"`
}

// Request is a joiner's half of a join: keys that never leave the machine.
type Request struct {
	dir string
	key *ecdsa.PrivateKey
	wg  wgtypes.Key
}

// CSR is a certificate request (PEM) for name, signed by the peer's key.
func (r *Request) CSR(name string) ([]byte, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, csrTemplate(name), r.key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return encodeCSR(der), nil
}

// WireGuardKey is the public one.
func (r *Request) WireGuardKey() string { return r.wg.PublicKey().String() }

// NewRequest returns the joiner's keys: those of an earlier attempt in dir,
// or new ones that are written there (mode 0600) until [Request.Adopt] removes them.
func NewRequest(dir string) (*Request, error) {
	path := filepath.Join(dir, pendingFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newRequest(dir, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the keys of an earlier join: %w", err)
	}
	r, err := parsePending(dir, data)
	if err != nil {
		return nil, fmt.Errorf("the keys of an earlier join are damaged (%w): delete %s and join again", err, path)
	}
	return r, nil
}

func parsePending(dir string, data []byte) (*Request, error) {
	var p pending
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	key, err := parseKey(p.Key)
	if err != nil {
		return nil, err
	}
	wg, err := wgtypes.ParseKey(p.WireGuard)
	if err != nil {
		return nil, err
	}
	return &Request{dir: dir, key: key, wg: wg}, nil
}

func newRequest(dir, path string) (*Request, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	wg, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, fmt.Errorf("make a WireGuard key: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(pending{Key: keyPEM, WireGuard: wg.String()})
	if err != nil {
		return nil, fmt.Errorf("encode the keys of a join: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if err := WriteFileAtomic(path, data); err != nil {
		return nil, err
	}
	return &Request{dir: dir, key: key, wg: wg}, nil
}

// Adopt puts the bundle and the request's keys in place, all at once, and
// returns the peer's identity. It fails, leaving nothing, if the bundle does not fit the keys.
func (r *Request) Adopt(b *Bundle) (*Identity, error) {
	if ok, err := Exists(r.dir); err != nil {
		return nil, fmt.Errorf("look for an identity in %s: %w", r.dir, err)
	} else if ok {
		return nil, fmt.Errorf("%s holds an identity already: start it without --join, or use another data directory with --data-dir", r.dir)
	}
	id, err := install(r.dir, b, r.key, r.wg)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(r.dir, pendingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the keys of the join: %w", err)
	}
	return id, nil
}

// Bundle is what this peer gives to a joiner whose certificate is peerCert (PEM).
func (id *Identity) Bundle(peerCert []byte) (*Bundle, error) {
	caKey, err := encodeKey(id.ca.key)
	if err != nil {
		return nil, err
	}
	saKey, err := encodeKey(id.sa)
	if err != nil {
		return nil, err
	}
	return &Bundle{CACert: encodeCert(id.ca.cert.Raw), CAKey: caKey, ServiceAccount: saKey,
		GossipKey: id.GossipKey(), Settings: id.settings, PeerCert: peerCert}, nil
}

// ParseCSR reads a joiner's certificate request: the key must be ECDSA P-256
// and must have signed the request. Nothing else in the request is believed.
func ParseCSR(csrPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("not a PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	if k, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || k.Params().BitSize != 256 {
		return nil, errors.New("the certificate request's key is not ECDSA P-256")
	}
	return csr.PublicKey, nil
}

// SignPeer signs the certificate (PEM) of the peer called name with the key pub.
func (id *Identity) SignPeer(name string, pub crypto.PublicKey, addrs []netip.Addr) ([]byte, error) {
	der, err := id.ca.signPeer(name, pub, id.settings, addrs)
	if err != nil {
		return nil, err
	}
	return encodeCert(der), nil
}

func csrTemplate(name string) *x509.CertificateRequest {
	return &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: PeerUserPrefix + name, Organization: []string{PeerOrganization}},
	}
}

func encodeCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
