package nft

import (
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// program is a transaction for the nft program.
type program struct{ *knftables.Transaction }

func (p program) addSet(name string, s Set) { p.Add(setObject(name, s)) }

func (p program) addChain(name string, c Chain) { p.Add(chainObject(name, c)) }

func (p program) flushChain(name string) { p.Flush(&knftables.Chain{Name: name}) }

func (p program) addRules(chain string, c Chain) {
	for i, rule := range c.Rules {
		r := &knftables.Rule{Chain: chain, Rule: rule}
		if i == 0 {
			r.Comment = knftables.PtrTo(c.mark())
		}
		p.Add(r)
	}
}

func (p program) deleteElement(set string, s Set, key, value string) {
	p.Delete(elementObject(set, s, key, value))
}

func (p program) addElement(set string, s Set, key, value string) {
	p.Add(elementObject(set, s, key, value))
}

func (p program) deleteSet(name string, s Set) { p.Delete(setObject(name, s)) }

func chainObject(name string, c Chain) *knftables.Chain {
	o := &knftables.Chain{Name: name}
	if c.Hook != nil {
		o.Type, o.Hook, o.Priority = &c.Hook.Type, &c.Hook.Hook, &c.Hook.Priority
	}
	return o
}

func setObject(name string, s Set) knftables.Object {
	var flags []knftables.SetFlag
	var timeout *time.Duration
	if s.Timeout > 0 {
		// "dynamic" is not needed by the docs, but some kernels add it by
		// themselves and then refuse the declaration without it.
		flags = []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}
		timeout = &s.Timeout
	}
	var size *uint64
	if s.Size > 0 {
		size = &s.Size
	}
	kind := s.Type
	if s.TypeOf != "" {
		kind = ""
	}
	if s.Map {
		return &knftables.Map{Name: name, Type: kind, TypeOf: s.TypeOf, Flags: flags, Timeout: timeout, Size: size}
	}
	return &knftables.Set{Name: name, Type: kind, TypeOf: s.TypeOf, Flags: flags, Timeout: timeout, Size: size}
}

func elementObject(name string, s Set, key, value string) *knftables.Element {
	e := &knftables.Element{Key: strings.Split(key, " . ")}
	if s.Map {
		e.Map, e.Value = name, strings.Split(value, " . ")
	} else {
		e.Set = name
	}
	return e
}
