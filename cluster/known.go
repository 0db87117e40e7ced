package cluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

// knownFile holds the last known peers, so that a cold boot finds them before any
// store is readable.
const knownFile = "peers.json"

// known is one peer of it.
type known struct {
	Name   string `json:"name"`
	API    string `json:"api"`    // host:port of the TLS peer port
	Gossip string `json:"gossip"` // host:port
	Key    string `json:"key"`    // fingerprint
}

type knownPeers struct {
	Version int     `json:"version"` // 1
	Peers   []known `json:"peers"`
}

// knownOf makes the list of all peers but self.
func knownOf(peers []Peer, self string) []known {
	var ks []known
	for _, p := range peers {
		if p.Name != self {
			ks = append(ks, known{Name: p.Name, API: p.APIAddr(), Gossip: p.GossipAddr(), Key: p.Fingerprint})
		}
	}
	return ks
}

// loadKnown returns nothing if there is no file. A damaged one is an error; the
// caller goes on without it, since it is written again as soon as somebody is met.
func loadKnown(dir string) ([]known, error) {
	data, err := os.ReadFile(filepath.Join(dir, knownFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read known peers: %w", err)
	}
	var k knownPeers
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, fmt.Errorf("read known peers: %w", err)
	}
	if k.Version != 1 {
		return nil, fmt.Errorf("read known peers: version %d of %s is not known to this Rookery", k.Version, knownFile)
	}
	return k.Peers, nil
}

// saveKnown writes the list unless the file says the same already: an idle
// cluster writes nothing.
func saveKnown(dir string, ks []known) error {
	ks = slices.Clone(ks)
	slices.SortFunc(ks, func(a, b known) int { return cmp.Compare(a.Name, b.Name) })
	data, err := json.MarshalIndent(knownPeers{Version: 1, Peers: ks}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode known peers: %w", err)
	}
	data = append(data, '\n')
	path := filepath.Join(dir, knownFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return identity.WriteFileAtomic(path, data)
}
