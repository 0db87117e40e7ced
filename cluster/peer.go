package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Keys in the store. Everything of this package is under /rookery/.
const (
	PeersPrefix   = "/rookery/peers/"   // NAME -> Peer
	subnetsPrefix = "/rookery/subnets/" // 10.42.3.0-24 -> name of the peer that holds it
	removedPrefix = "/rookery/removed/" // key fingerprint -> removal
	tokensPrefix  = "/rookery/tokens/"  // token id -> tokenRecord
)

// Default ports.
const (
	DefaultPort       = 6443
	DefaultGossipPort = 7946
)

// Peer is the record of a machine that belongs to the cluster, alive or not, as it lies in
// the store under [PeersPrefix] and its name.
type Peer struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"` // last announced; gossip knows the current one
	// OtherAddress is the machine's address of the cluster's other IP family, on the device
	// that has Address; zero if it has none, or the cluster is of Address's family only.
	OtherAddress netip.Addr   `json:"otherAddress,omitzero"`
	Port         uint16       `json:"port"` // the TLS peer port
	GossipPort   uint16       `json:"gossipPort"`
	PodCIDR      netip.Prefix `json:"podCIDR"`
	WireGuardKey string       `json:"wireGuardKey"` // public, base64
	Fingerprint  string       `json:"fingerprint"`  // of the peer's key, see identity.Fingerprint
	Version      string       `json:"version"`
	// Witness is reserved: a peer that votes and runs nothing.
	Witness bool `json:"witness,omitempty"`
	// Removing says that the peer is to go: the leader takes it out of Raft and
	// then calls [Registry.Forget].
	Removing bool      `json:"removing,omitempty"`
	Joined   time.Time `json:"joined"`
}

// APIAddr is where the peer's TLS port was last announced.
func (p Peer) APIAddr() string { return netip.AddrPortFrom(p.Address, p.Port).String() }

// GossipAddr is where the peer's gossip was last announced.
func (p Peer) GossipAddr() string { return netip.AddrPortFrom(p.Address, p.GossipPort).String() }

// decodePeer keeps the decoded record with its bytes.
func decodePeer(kv *raftstore.KV) (Peer, error) {
	v, err := kv.Memo(func(kv *raftstore.KV) (any, error) {
		var p Peer
		if err := json.Unmarshal(kv.Value, &p); err != nil {
			return nil, fmt.Errorf("decode peer record %s: %w", kv.Key, err)
		}
		return p, nil
	})
	if err != nil {
		return Peer{}, err
	}
	p, ok := v.(Peer)
	if !ok {
		return Peer{}, fmt.Errorf("decode peer record %s: it was decoded as %T before", kv.Key, v)
	}
	return p, nil
}
