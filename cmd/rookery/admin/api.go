// Package admin is what rookery's own verbs (token, peers, status, image) ask a
// peer for, beside the Kubernetes API: HTTP under /rookery/v1/ on the peer port,
// for the cluster's administrators and its peers. It has both ends, [Server] and
// [Client]; cmd/rookery is its only user.
package admin

import "time"

// Prefix begins every path of this API.
const Prefix = "/rookery/v1/"

// Liveness of a peer, as the answering peer sees it.
const (
	Alive   = "alive"
	Suspect = "suspect"
	Dead    = "dead"
	Left    = "left"
	Joining = "joining" // recorded, never heard of since this daemon started
)

// Roles of a peer in Raft.
const (
	Leader  = "leader"
	Voter   = "voter"
	Replica = "replica"
	NoRole  = "-" // not in Raft (yet)
)

// PeerInfo is one row of `rookery peers`.
type PeerInfo struct {
	Name      string        `json:"name"`
	Address   string        `json:"address"`                // at which the other peers reach it
	Other     string        `json:"otherAddress,omitempty"` // of the cluster's other IP family
	Hidden    bool          `json:"hidden,omitempty"`       // the answering peer cannot dial it; it keeps a connection instead
	State     string        `json:"state"`
	Role      string        `json:"role"`
	RoundTrip time.Duration `json:"roundTrip"` // nanoseconds; 0: not measured
	Version   string        `json:"version"`
	PodCIDRs  []string      `json:"podCIDRs"` // one of each IP family of the cluster
	Joined    time.Time     `json:"joined"`
	Self      bool          `json:"self,omitempty"`
}

// Status is what `rookery status` shows.
type Status struct {
	Peer     string     `json:"peer"` // the one that answers
	Version  string     `json:"version"`
	Quorum   bool       `json:"quorum"`
	Missing  []string   `json:"missing,omitempty"` // voters that cannot be reached, when there is no quorum
	Leader   string     `json:"leader,omitempty"`
	Term     uint64     `json:"term"`
	Revision int64      `json:"revision"`
	Digest   string     `json:"digest"` // of the state at Revision: equal on all peers
	Peers    []PeerInfo `json:"peers"`
	Pods     Pods       `json:"pods"`
	Paths    []string   `json:"paths,omitempty"`  // of the answering peer's ways to others, those that carry less than is sent at most
	Network  string     `json:"network"`          // how the answering peer's packets travel to others: "vxlan"
	Change   string     `json:"change,omitempty"` // what the cluster wants instead, if the peer has not followed yet
	Engine   string     `json:"engine"`           // "podman 4.3.1 (runc)", or why it does not answer
	// Problems are for a human: what is wrong and what to do.
	Problems []Problem `json:"problems,omitempty"`
}

// Pods counts pods by what they are up to.
type Pods struct {
	Total   int            `json:"total"`
	Ready   int            `json:"ready"`
	ByPeer  map[string]int `json:"byPeer,omitempty"`
	Waiting []string       `json:"waiting,omitempty"` // "namespace/name: reason", the first few
}

// Problem is something wrong, with its cure.
type Problem struct {
	What string `json:"what"`
	Do   string `json:"do"`
}

// TokenInfo is one row of `rookery token list`. Token is set when it was just created.
type TokenInfo struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Token   string    `json:"token,omitempty"`
	Address string    `json:"address,omitempty"` // of a peer to join, with Token
}

// ImageResult is what became of an image archive on one peer.
type ImageResult struct {
	Peer  string   `json:"peer"`
	Names []string `json:"names,omitempty"`
	Error string   `json:"error,omitempty"`
}

// failure is the body of every answer that is not 2xx.
type failure struct {
	Error string `json:"error"`
}
