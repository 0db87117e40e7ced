package services

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// objects are what rules are computed from. Services go by their keys, namespace/name.
type objects struct {
	service func(key string) *corev1.Service // nil: there is none
	slices  func(key string) []*discoveryv1.EndpointSlice
	split   func(*corev1.Service) *Split // nil: none is split
	alive   func(node string) bool
}

// change is what becomes of the rules and of what must agree with them.
type change struct {
	rules  nft.Patch
	udp    changes[frontend, endpoints]
	health changes[uint16, health]
	dead   map[netip.Addr]struct{} // endpoints that are on dead nodes now
}

// computer makes the rules of one family of what its Services come to. It remembers enough of
// each that a change costs the same among many Services as among few.
type computer struct {
	self     Self
	parts    map[string]part
	chains   claims[string, nft.Chain] // what Services share says the same for all
	elements claims[nft.Element, string]
	udp      claims[frontend, endpoints]
	health   claims[uint16, health]
}

// part is a Service in the rules: what it was computed from, and the names of what it came to.
type part struct {
	svc   *corev1.Service
	of    []*discoveryv1.EndpointSlice
	split *Split
	asked []answer

	chains, sets []string
	elements     []nft.Element
	udp          []frontend
	dead         []netip.Addr
	health       []uint16
}

// answer is what objects.alive said.
type answer struct {
	node  string
	alive bool
}

func newComputer(self Self) *computer {
	return &computer{
		self: self, parts: map[string]part{}, chains: claims[string, nft.Chain]{}, elements: claims[nft.Element, string]{},
		udp: claims[frontend, endpoints]{}, health: claims[uint16, health]{},
	}
}

// update computes those of the Services anew that have changed, and returns what changes with
// them: in a new computer, from the base and nothing else.
func (c *computer) update(keys iter.Seq[string], o objects) change {
	out := change{rules: nft.NewPatch(), udp: changes[frontend, endpoints]{}, health: changes[uint16, health]{}, dead: map[netip.Addr]struct{}{}}
	for key := range keys {
		c.service(key, o, &out)
	}
	return out
}

func (c *computer) service(key string, o objects, out *change) {
	was, known := c.parts[key]
	var is part
	var t table
	if is.svc = o.service(key); is.svc != nil {
		is.of = o.slices(key)
		if o.split != nil {
			is.split = o.split(is.svc)
		}
		if known && was.still(is, o.alive) {
			return
		}
		t = compute(is.svc, is.of, is.split, is.ask(o.alive), c.self)
	}
	for _, name := range was.sets {
		out.rules.Sets[name] = nil
	}
	for name, set := range t.sets {
		out.rules.Sets[name] = &set
	}
	for addr := range t.dead {
		if !slices.Contains(was.dead, addr) {
			out.dead[addr] = struct{}{}
		}
	}
	is.sets, is.dead = names(t.sets), names(t.dead)
	is.chains = c.chains.replace(key, was.chains, t.chains, out.rules.Chains)
	is.elements = c.elements.replace(key, was.elements, t.elements, out.rules.Elements)
	is.udp = c.udp.replace(key, was.udp, t.udp, out.udp)
	is.health = c.health.replace(key, was.health, t.health, out.health)
	if is.svc == nil {
		delete(c.parts, key)
	} else {
		c.parts[key] = is
	}
}

// still tells whether the part is what the inputs of is would come to. Objects of an informer
// are never changed, only replaced.
func (p part) still(is part, alive func(string) bool) bool {
	return p.svc == is.svc && p.split == is.split && slices.Equal(p.of, is.of) &&
		!slices.ContainsFunc(p.asked, func(a answer) bool { return alive(a.node) != a.alive })
}

// ask is alive, whose answers it remembers.
func (p *part) ask(alive func(string) bool) func(string) bool {
	return func(node string) bool {
		for _, a := range p.asked {
			if a.node == node {
				return a.alive
			}
		}
		a := answer{node, alive(node)}
		p.asked = append(p.asked, a)
		return a.alive
	}
}

// names are the keys; nil for none, and without room for more.
func names[K comparable, V any](m map[K]V) []K {
	if len(m) == 0 {
		return nil
	}
	return slices.AppendSeq(make([]K, 0, len(m)), maps.Keys(m))
}
