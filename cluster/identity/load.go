package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ErrNone says that the data directory holds no identity yet.
var ErrNone = errors.New("no identity here")

// DamagedError says which file of an identity is missing or does not fit.
type DamagedError struct {
	Dir, File string
	Err       error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: %v: restore the folder %s from a backup, or delete the data directory and join this machine "+
		"again under another name (`rookery peers remove` frees the old one)", filepath.Join(e.Dir, e.File), e.Err, e.Dir)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Identity is a peer's keys and certificates. It is safe for concurrent use.
type Identity struct {
	dir       string // the data directory
	name      string
	ca        *authority
	sa        *ecdsa.PrivateKey
	peerKey   *ecdsa.PrivateKey
	gossip    []byte
	wireguard wgtypes.Key
	settings  Settings
	fp        string

	mu    sync.Mutex
	cert  *tls.Certificate // issued again when an address is missing
	addrs []netip.Addr     // what cert covers
}

// Load reads and checks the identity in the data directory dir: every file is
// there, readable by its owner alone, and they fit each other. [ErrNone] if
// there is none, a [*DamagedError] with the cure if it is not whole. It writes nothing.
func Load(dir string) (*Identity, error) {
	if ok, err := Exists(dir); err != nil {
		return nil, fmt.Errorf("look for an identity in %s: %w", dir, err)
	} else if !ok {
		return nil, fmt.Errorf("%s: %w: make a cluster with `rookery up`, or join one with `rookery up --join HOST --token TOKEN`", dir, ErrNone)
	}
	id, err := loadPKI(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}
	id.dir = dir
	return id, nil
}

func loadPKI(pki string) (*Identity, error) {
	l := loader{dir: pki}
	id := &Identity{ca: &authority{now: time.Now}}
	id.ca.cert = read(&l, "ca.crt", parseCert)
	id.ca.key = read(&l, "ca.key", parseKey)
	id.sa = read(&l, "sa.key", parseKey)
	saPub := read(&l, "sa.pub", func(b []byte) ([]byte, error) { return b, nil })
	cert := read(&l, "peer.crt", parseCert)
	id.peerKey = read(&l, "peer.key", parseKey)
	id.gossip = read(&l, "gossip.key", parseGossip)
	id.wireguard = read(&l, "wireguard.key", func(b []byte) (wgtypes.Key, error) { return wgtypes.ParseKey(strings.TrimSpace(string(b))) })
	id.settings = read(&l, "cluster.json", parseSettings)
	if l.err != nil {
		return nil, l.err
	}
	l.check("ca.key", samePublic(id.ca.cert, id.ca.key), "it is not the key of ca.crt")
	l.check("peer.key", samePublic(cert, id.peerKey), "it is not the key of peer.crt")
	wantPub, err := encodePublicKey(id.sa.Public())
	if err != nil {
		return nil, err
	}
	l.check("sa.pub", bytes.Equal(wantPub, saPub), "it is not the public part of sa.key")
	name, err := verifyChain(id.ca.cert, cert, x509.ExtKeyUsageServerAuth)
	l.check("peer.crt", err == nil, fmt.Sprintf("it is not a peer's certificate of this CA (%v)", err))
	if l.err != nil {
		return nil, l.err
	}
	id.name, id.fp = name, Fingerprint(cert)
	id.setCert(cert)
	return id, nil
}

// loader keeps the first error, so that the list of files reads as one.
type loader struct {
	dir string
	err error
}

func read[T any](l *loader, name string, parse func([]byte) (T, error)) (v T) {
	if l.err != nil {
		return v
	}
	path := filepath.Join(l.dir, name)
	st, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the file is missing")
		}
		l.err = &DamagedError{l.dir, name, err}
		return v
	}
	if strings.HasSuffix(name, ".key") && st.Mode().Perm()&0o077 != 0 {
		l.err = fmt.Errorf("%s can be read by others than its owner: chmod 600 %s", path, path)
		return v
	}
	data, err := os.ReadFile(path)
	if err == nil {
		v, err = parse(data)
	}
	if err != nil {
		l.err = &DamagedError{l.dir, name, err}
	}
	return v
}

func (l *loader) check(name string, ok bool, why string) {
	if l.err == nil && !ok {
		l.err = &DamagedError{l.dir, name, errors.New(why)}
	}
}

func samePublic(c *x509.Certificate, k *ecdsa.PrivateKey) bool {
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && pub.Equal(k.Public())
}

func parseGossip(b []byte) ([]byte, error) {
	k, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, err
	}
	if len(k) != 32 {
		return nil, fmt.Errorf("the key has %d bytes, not 32", len(k))
	}
	return k, nil
}

func parseSettings(b []byte) (Settings, error) {
	var s Settings
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	return s, s.Validate()
}
