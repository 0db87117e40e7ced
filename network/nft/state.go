// Package nft keeps one nftables table equal to a wanted state, and writes no
// more than what differs.
//
// The wanted state is plain data ([State]); several writers each own a section
// of it ([Table.Set]). What is in the kernel when the process starts is read
// once and adopted: a restart over an unchanged cluster writes nothing.
// Nothing outside the table is looked at or touched.
//
// What the chains mean is left to the callers: package network for pods and
// address translation, network/services for Services.
package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// State is what a section of the table shall hold. Names are unique across
// sections.
type State struct {
	Chains map[string]Chain
	Sets   map[string]Set
}

// NewState returns an empty state whose maps can be written to.
func NewState() State {
	return State{Chains: map[string]Chain{}, Sets: map[string]Set{}}
}

// Chain is a chain with its rules in nft syntax.
type Chain struct {
	Hook  *Hook // nil: a regular chain
	Rules []string
}

// Hook makes a chain a base chain.
type Hook struct {
	Type     knftables.BaseChainType
	Hook     knftables.BaseChainHook
	Priority knftables.BaseChainPriority
}

// Set is a set, or a map if Map is true.
type Set struct {
	Map  bool
	Type string // as in nft: "ipv4_addr . inet_service", for maps "ipv4_addr : verdict"
	// Timeout makes the set one that the packet path fills (its elements are
	// the kernel's, and never compared); zero for a set that Elements fills.
	Timeout time.Duration
	// Size bounds the number of elements of a set that the packet path fills; zero: 65535.
	Size uint64
	// Elements maps each key to its value ("" in sets). Parts are joined by " . ".
	Elements map[string]string
}

func (c Chain) sameRules(o Chain) bool { return slices.Equal(c.Rules, o.Rules) }

// mark is the comment of a chain's first rule. nft gives rules back in another
// spelling than it was given, so equality with the kernel is decided by this hash.
func (c Chain) mark() string {
	h := sha256.Sum256([]byte(strings.Join(c.Rules, "\n")))
	return "v1:" + hex.EncodeToString(h[:12])
}
