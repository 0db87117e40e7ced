package nft

import (
	"context"
	"strings"

	"sigs.k8s.io/knftables"
)

// read returns the state of the table in the kernel, as far as it can be told
// apart from want: a chain whose mark is that of the wanted one is reported with
// the wanted rules, any other with rules that equal nothing.
func read(ctx context.Context, nft knftables.Interface, want State) (State, error) {
	have := NewState()
	all, err := nft.ListAll(ctx)
	if knftables.IsNotFound(err) {
		return have, nil
	}
	if err != nil {
		return have, err
	}
	if err := readChains(ctx, nft, all["chain"], want, have); err != nil {
		return have, err
	}
	for _, kind := range []string{"set", "map"} {
		for _, name := range all[kind] {
			set := want.Sets[name]
			if _, ok := want.Sets[name]; !ok || set.Map != (kind == "map") {
				set = Set{Map: kind == "map"}
				have.Sets[name] = set // only ever deleted, by its name
				continue
			}
			set.Elements = map[string]string{}
			if set.Timeout == 0 {
				elements, err := nft.ListElements(ctx, kind, name)
				if err != nil {
					return have, err
				}
				for _, e := range elements {
					set.Elements[strings.Join(e.Key, " . ")] = strings.Join(e.Value, " . ")
				}
			}
			have.Sets[name] = set
		}
	}
	return have, nil
}

func readChains(ctx context.Context, nft knftables.Interface, names []string, want, have State) error {
	if len(names) == 0 {
		return nil
	}
	rules, err := nft.ListRules(ctx, "")
	if err != nil {
		return err
	}
	marks, count := map[string]string{}, map[string]int{}
	for _, r := range rules {
		if count[r.Chain] == 0 && r.Comment != nil {
			marks[r.Chain] = *r.Comment
		}
		count[r.Chain]++
	}
	for _, name := range names {
		w, ok := want.Chains[name]
		switch {
		case count[name] == 0:
			have.Chains[name] = Chain{}
		case ok && count[name] == len(w.Rules) && marks[name] == w.mark():
			have.Chains[name] = w
		default:
			have.Chains[name] = Chain{Rules: []string{""}}
		}
	}
	return nil
}
