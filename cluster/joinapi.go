package cluster

import (
	"errors"
	"net/http"
	"net/netip"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// JoinPath is where a peer takes joiners, by POST, on the API port.
const JoinPath = "/rookery/v1/join"

// maxJoinBytes bounds a request (a CSR and a few words) and maxBundleBytes an answer
// (some keys and a line for each known peer).
const (
	maxJoinBytes   = 16 << 10
	maxBundleBytes = 4 << 20
)

// joinRequest is what the joiner sends. The token proves that it may.
type joinRequest struct {
	Token        string     `json:"token"`
	Name         string     `json:"name"`
	Address      netip.Addr `json:"address"` // zero: the one that the connection comes from
	Port         uint16     `json:"port"`
	GossipPort   uint16     `json:"gossipPort"`
	CSR          []byte     `json:"csr"` // PEM
	WireGuardKey string     `json:"wireGuardKey"`
	Version      string     `json:"version"`
	Witness      bool       `json:"witness,omitempty"`
}

// joinResponse is what makes the joiner a peer.
type joinResponse struct {
	Bundle identity.Bundle `json:"bundle"`
	Peer   Peer            `json:"peer"`
	Peers  []Peer          `json:"peers"` // all records, addresses as they are now
}

// joinFailure is the body of a refusal. Code is for programs, Message for people.
type joinFailure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// ErrTooMany says that too many wrong tokens came from one address.
var ErrTooMany = errors.New("too many wrong join tokens from this address; wait a minute and try again")

// ErrJoinRequest says that the request itself is wrong.
var ErrJoinRequest = errors.New("join request is not valid")

// errNoQuorum is the joiner's view of a raftstore.NoQuorumError on the other side.
var errNoQuorum = errors.New("the cluster cannot take a new peer right now")

// joinCodes is the only place where errors, codes and HTTP statuses of a join meet.
func joinCodes() []joinCode {
	return []joinCode{
		{"token-malformed", http.StatusUnauthorized, ErrTokenMalformed},
		{"token-unknown", http.StatusUnauthorized, ErrTokenUnknown},
		{"token-expired", http.StatusUnauthorized, ErrTokenExpired},
		{"token-foreign", http.StatusUnauthorized, ErrTokenForeign},
		{"too-many", http.StatusTooManyRequests, ErrTooMany},
		{"name-taken", http.StatusConflict, ErrNameTaken},
		{"removed", http.StatusForbidden, ErrRemoved},
		{"no-subnet", http.StatusConflict, ErrNoSubnet},
		{"invalid", http.StatusBadRequest, ErrJoinRequest},
		{"no-quorum", http.StatusServiceUnavailable, errNoQuorum},
	}
}

type joinCode struct {
	code   string
	status int
	err    error
}

// classify finds the code of err; "internal" and 500 if it has none.
func classify(err error) joinCode {
	var nq *raftstore.NoQuorumError
	for _, c := range joinCodes() {
		if errors.Is(err, c.err) || (c.err == errNoQuorum && errors.As(err, &nq)) {
			return c
		}
	}
	return joinCode{code: "internal", status: http.StatusInternalServerError}
}

// JoinError is a refusal as the joiner sees it. Its text is the other side's, with the cure;
// errors.Is finds the sentinel (ErrTokenExpired, ErrNameTaken, …).
type JoinError struct {
	Host, Code, Message string
}

func (e *JoinError) Error() string { return e.Host + " refused: " + e.Message }

func (e *JoinError) Is(target error) bool {
	for _, c := range joinCodes() {
		if c.code == e.Code {
			return c.err == target
		}
	}
	return false
}
