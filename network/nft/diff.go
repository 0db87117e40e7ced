package nft

import (
	"maps"
	"slices"

	"sigs.k8s.io/knftables"
)

// diff appends to tx what turns have into want, and returns the names of the
// chains that were emptied because nothing wants them any more. They are not
// deleted here: kernels before 6.2 count a deleted map element as a reference
// for a moment longer, and would refuse the whole transaction.
func diff(tx *knftables.Transaction, have, want State) (stale []string) {
	// Declarations first, so that rules and elements may refer to each other freely.
	for _, name := range slices.Sorted(maps.Keys(want.Sets)) {
		if _, ok := have.Sets[name]; !ok {
			tx.Add(setObject(name, want.Sets[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.Chains)) {
		if _, ok := have.Chains[name]; !ok {
			tx.Add(chainObject(name, want.Chains[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.Chains)) {
		w := want.Chains[name]
		h, ok := have.Chains[name]
		if ok && h.sameRules(w) {
			continue
		}
		if ok && len(h.Rules) > 0 {
			tx.Flush(&knftables.Chain{Name: name})
		}
		for i, rule := range w.Rules {
			r := &knftables.Rule{Chain: name, Rule: rule}
			if i == 0 {
				r.Comment = knftables.PtrTo(w.mark())
			}
			tx.Add(r)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.Sets)) {
		diffElements(tx, name, have.Sets[name], want.Sets[name])
	}
	// What goes away: first every reference, then what was referred to.
	for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
		if _, ok := want.Chains[name]; !ok {
			tx.Flush(&knftables.Chain{Name: name})
			stale = append(stale, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Sets)) {
		if _, ok := want.Sets[name]; !ok {
			tx.Delete(setObject(name, have.Sets[name]))
		}
	}
	return stale
}

func diffElements(tx *knftables.Transaction, name string, have, want Set) {
	if want.Timeout > 0 {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(have.Elements)) {
		if v, ok := want.Elements[key]; !ok || v != have.Elements[key] {
			tx.Delete(elementObject(name, want, key, have.Elements[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want.Elements)) {
		if v, ok := have.Elements[key]; !ok || v != want.Elements[key] {
			tx.Add(elementObject(name, want, key, want.Elements[key]))
		}
	}
}
