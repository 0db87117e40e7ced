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
	// TypeOf is the same as nft's typeof, where nft has no name for a part: Type calls a number
	// of the machine's own byte order "integer".
	TypeOf string
	// Timeout makes the set one that the packet path fills (its elements are
	// the kernel's, and never compared); zero for a set that Elements fills.
	Timeout time.Duration
	// Size bounds the number of elements of a set that the packet path fills; zero: 65535.
	Size uint64
	// Elements maps each key to its value ("" in sets). Parts are joined by " . ".
	Elements map[string]string
}

// Element is the place of an element: its set and its key.
type Element struct{ Set, Key string }

// Patch is a change of a [State]: what it names is afterwards as it says, nil for not at all, and
// all else stays as it is.
type Patch struct {
	Chains map[string]*Chain
	Sets   map[string]*Set // whole
	// Elements are the values of elements of sets that are there, and that Sets does not name.
	Elements map[Element]*string
}

// NewPatch returns a patch that changes nothing, whose maps can be written to.
func NewPatch() Patch {
	return Patch{Chains: map[string]*Chain{}, Sets: map[string]*Set{}, Elements: map[Element]*string{}}
}

// Apply changes the state, in its own maps.
func (s State) Apply(p Patch) {
	put(s.Chains, p.Chains)
	put(s.Sets, p.Sets)
	for at, value := range p.Elements {
		elements := s.Sets[at.Set].Elements
		if value == nil {
			delete(elements, at.Key)
		} else {
			elements[at.Key] = *value
		}
	}
}

func put[V any](to map[string]V, values map[string]*V) {
	for name, v := range values {
		if v == nil {
			delete(to, name)
		} else {
			to[name] = *v
		}
	}
}

// named is what the state has of that which the patch names.
func (s State) named(p Patch) State {
	out := NewState()
	pick(out.Chains, s.Chains, p.Chains)
	pick(out.Sets, s.Sets, p.Sets)
	for at := range p.Elements {
		set, ok := s.Sets[at.Set]
		if !ok {
			continue
		}
		some, ok := out.Sets[at.Set]
		if !ok {
			some = set
			some.Elements = map[string]string{}
			out.Sets[at.Set] = some
		}
		if value, ok := set.Elements[at.Key]; ok {
			some.Elements[at.Key] = value
		}
	}
	return out
}

func pick[V any](to, from map[string]V, names map[string]*V) {
	for name := range names {
		if v, ok := from[name]; ok {
			to[name] = v
		}
	}
}

func (c Chain) sameRules(o Chain) bool { return slices.Equal(c.Rules, o.Rules) }

// mark is the comment of a chain's first rule. nft gives rules back in another
// spelling than it was given, so equality with the kernel is decided by this hash.
func (c Chain) mark() string {
	h := sha256.Sum256([]byte(strings.Join(c.Rules, "\n")))
	return "v1:" + hex.EncodeToString(h[:12])
}
