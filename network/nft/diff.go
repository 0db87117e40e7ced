package nft

import (
	"maps"
	"slices"
)

// writer takes the steps of one transaction, in their order.
type writer interface {
	addSet(name string, s Set)
	addChain(name string, c Chain)
	flushChain(name string)
	addRules(chain string, c Chain)
	deleteElement(set string, s Set, key, value string)
	addElement(set string, s Set, key, value string)
	deleteSet(name string, s Set)
}

// diff hands to tx what turns have into want, and returns the names of the
// chains that were emptied because nothing wants them any more. They are not
// deleted here: kernels before 6.2 count a deleted map element as a reference
// for a moment longer, and would refuse the whole transaction.
func diff(tx writer, have, want State) (stale []string) {
	// Declarations first, so that rules and elements may refer to each other freely.
	for _, name := range missing(want.Sets, have.Sets) {
		tx.addSet(name, want.Sets[name])
	}
	for _, name := range missing(want.Chains, have.Chains) {
		tx.addChain(name, want.Chains[name])
	}
	for _, name := range differing(want.Chains, have.Chains, Chain.sameRules) {
		w := want.Chains[name]
		if h, ok := have.Chains[name]; ok && len(h.Rules) > 0 {
			tx.flushChain(name)
		}
		tx.addRules(name, w)
	}
	for _, name := range slices.Sorted(maps.Keys(want.Sets)) {
		diffElements(tx, name, have.Sets[name], want.Sets[name])
	}
	// What goes away: first every reference, then what was referred to.
	for _, name := range missing(have.Chains, want.Chains) {
		tx.flushChain(name)
		stale = append(stale, name)
	}
	for _, name := range missing(have.Sets, want.Sets) {
		tx.deleteSet(name, have.Sets[name])
	}
	return stale
}

func diffElements(tx writer, name string, have, want Set) {
	if want.Timeout > 0 {
		return
	}
	same := func(a, b string) bool { return a == b }
	for _, key := range differing(have.Elements, want.Elements, same) {
		tx.deleteElement(name, want, key, have.Elements[key])
	}
	for _, key := range differing(want.Elements, have.Elements, same) {
		tx.addElement(name, want, key, want.Elements[key])
	}
}

// missing are the keys of all that are not in there, sorted.
func missing[V any](all, there map[string]V) []string {
	return differing(all, there, func(V, V) bool { return true })
}

// differing are the keys of all that there has not, or has with another value, sorted.
func differing[V any](all, there map[string]V, same func(a, b V) bool) (out []string) {
	for key, v := range all {
		if o, ok := there[key]; !ok || !same(v, o) {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}
