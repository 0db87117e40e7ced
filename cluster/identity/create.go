package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Options are what a new cluster's first peer is made with.
type Options struct {
	Name      string       // the peer's name, see [ValidateName]
	Addresses []netip.Addr // addresses to put into its certificate; may be empty
	Settings  Settings     // zero: [DefaultSettings]
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Bundle is what a joiner gets from the cluster beside its own certificate.
// All of it is secret.
type Bundle struct {
	CACert         []byte   `json:"caCert"`    // PEM
	CAKey          []byte   `json:"caKey"`     // PEM
	ServiceAccount []byte   `json:"saKey"`     // PEM
	GossipKey      []byte   `json:"gossipKey"` // 32 bytes
	Settings       Settings `json:"settings"`
	PeerCert       []byte   `json:"peerCert"` // PEM, signed by CACert
}

// Exists tells whether dir holds an identity, whole or damaged.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, "pki"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Create makes a new cluster's identity in the data directory dir and returns
// it. It is idempotent: an identity that is there is loaded, and it is an error
// if it belongs to a peer of another name. All files appear at once, by one
// rename of the pki folder; a creation that is cut off leaves nothing that Load would take.
func Create(dir string, o Options) (*Identity, error) {
	if err := ValidateName(o.Name); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Settings == (Settings{}) {
		o.Settings = DefaultSettings()
	}
	if err := o.Settings.Validate(); err != nil {
		return nil, err
	}
	if ok, err := Exists(dir); err != nil {
		return nil, fmt.Errorf("look for an identity in %s: %w", dir, err)
	} else if ok {
		return reopen(dir, o.Name)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	wg, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, fmt.Errorf("make a WireGuard key: %w", err)
	}
	b, err := newBundle(o, key.Public())
	if err != nil {
		return nil, err
	}
	return install(dir, b, key, wg)
}

func reopen(dir, name string) (*Identity, error) {
	id, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if id.Name() != name {
		return nil, fmt.Errorf("%s belongs to the peer %q, not %q: start it as %q, or use another data directory with --data-dir",
			dir, id.Name(), name, id.Name())
	}
	return id, id.EnsureKubeconfig("")
}

func newBundle(o Options, pub crypto.PublicKey) (*Bundle, error) {
	caKey, caCert, err := newCA(o.Now())
	if err != nil {
		return nil, err
	}
	saKey, err := newKey()
	if err != nil {
		return nil, err
	}
	ca := &authority{cert: caCert, key: caKey, now: o.Now}
	der, err := ca.signPeer(o.Name, pub, o.Settings, o.Addresses)
	if err != nil {
		return nil, err
	}
	b := &Bundle{CACert: encodeCert(caCert.Raw), Settings: o.Settings, PeerCert: encodeCert(der), GossipKey: make([]byte, 32)}
	if _, err := rand.Read(b.GossipKey); err != nil {
		return nil, fmt.Errorf("make a gossip key: %w", err)
	}
	if b.CAKey, err = encodeKey(caKey); err != nil {
		return nil, err
	}
	if b.ServiceAccount, err = encodeKey(saKey); err != nil {
		return nil, err
	}
	return b, nil
}

// install writes the identity to a hidden folder, syncs it, loads it from there
// (so that what is renamed is known to be good) and renames it to pki.
func install(dir string, b *Bundle, key *ecdsa.PrivateKey, wg wgtypes.Key) (*Identity, error) {
	files, err := b.files(key, wg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if err := sweep(dir); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	defer os.RemoveAll(tmp) // gone already after the rename
	for name, data := range files {
		if err := writeSynced(filepath.Join(tmp, name), data); err != nil {
			return nil, err
		}
	}
	if _, err := loadPKI(tmp); err != nil {
		return nil, fmt.Errorf("check the new identity: %w", err)
	}
	if err := syncDir(tmp); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "pki")); err != nil {
		return nil, fmt.Errorf("put the identity in place: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	id, err := Load(dir)
	if err != nil {
		return nil, err
	}
	return id, id.EnsureKubeconfig("")
}

func (b *Bundle) files(key *ecdsa.PrivateKey, wg wgtypes.Key) (map[string][]byte, error) {
	peerKey, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	sa, err := parseKey(b.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("read service account key: %w", err)
	}
	saPub, err := encodePublicKey(sa.Public())
	if err != nil {
		return nil, err
	}
	settings, err := json.MarshalIndent(b.Settings, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode cluster settings: %w", err)
	}
	return map[string][]byte{
		"ca.crt": b.CACert, "ca.key": b.CAKey,
		"sa.key": b.ServiceAccount, "sa.pub": saPub,
		"peer.crt": b.PeerCert, "peer.key": peerKey,
		"gossip.key":    []byte(base64.StdEncoding.EncodeToString(b.GossipKey) + "\n"),
		"wireguard.key": []byte(wg.String() + "\n"),
		"cluster.json":  append(settings, '\n'),
	}, nil
}
