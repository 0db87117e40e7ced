package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// State is what gossip knows of a peer.
type State uint8

const (
	StateUnknown State = iota // recorded, but never met since this daemon started
	StateAlive
	StateSuspect // still counted as alive, but it has missed its probes
	StateDead
	StateLeft // it said goodbye
)

func (s State) String() string {
	switch s {
	case StateAlive:
		return "alive"
	case StateSuspect:
		return "suspect"
	case StateDead:
		return "dead"
	case StateLeft:
		return "left"
	default:
		return "unknown"
	}
}

// Up tells whether traffic should be sent there.
func (s State) Up() bool { return s == StateAlive || s == StateSuspect }

// Member is a peer as gossip sees it from here.
type Member struct {
	Name       string
	State      State
	Since      time.Time  // when State last changed between up and down, by this peer's clock
	Address    netip.Addr // current one, or the last known
	Port       uint16     // TLS peer port
	GossipPort uint16
	Version    string
	Witness    bool
	// Fingerprint is that of the peer's key; WireGuard* are what it takes to reach it.
	Fingerprint   string
	WireGuardKey  string
	WireGuardPort uint16
	Started       time.Time // when its daemon started, by its clock
	// WireGuardStarted is when its WireGuard did, if that is a process; zero: it is not, or its daemon has just begun.
	WireGuardStarted time.Time
	RTT              time.Duration // of the last answered probe; 0: none yet
	// Hidden: it says that most of the peers that it asked cannot dial it (see [Keepers]).
	Hidden bool
	// Index is the Raft index that it had applied at its last answer, 0 if unknown.
	Index uint64
	Self  bool
}

// APIAddr is where the member's TLS port is; "" if that is not known.
func (m Member) APIAddr() string {
	if !m.Address.IsValid() || m.Port == 0 {
		return ""
	}
	return netip.AddrPortFrom(m.Address, m.Port).String()
}

const (
	metaVersion = 1
	// maxVersion keeps the meta within memberlist's 512 bytes.
	maxVersion = 64
)

// meta is what every gossip message of a peer carries, as JSON. Later versions
// may add fields; they must not change the meaning of these.
type meta struct {
	V       int    `json:"v"`
	Port    uint16 `json:"p"`
	Version string `json:"ver"`
	Witness bool   `json:"w,omitempty"`
	Leaving bool   `json:"l,omitempty"` // the death that follows is a goodbye
	Hidden  bool   `json:"h,omitempty"`
	WGPort  uint16 `json:"wp,omitempty"`
	WGKey   string `json:"wk,omitempty"`
	Key     string `json:"k"` // fingerprint
	Started int64  `json:"t"` // Unix seconds
	// WGStarted is in nanoseconds of Unix time, 0: not known. Seconds do not tell boots apart
	// of a machine whose clock begins anew each time.
	WGStarted int64 `json:"wt,omitempty"`
}

func (m meta) encode(limit int) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode gossip meta: %w", err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("encode gossip meta: %d bytes do not fit %d", len(b), limit)
	}
	return b, nil
}

func decodeMeta(b []byte) (meta, error) {
	var m meta
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("decode gossip meta: %w", err)
	}
	if m.V < metaVersion {
		return m, fmt.Errorf("decode gossip meta: version %d is not known", m.V)
	}
	return m, nil
}
