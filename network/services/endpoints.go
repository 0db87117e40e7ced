package services

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/knftables"
)

// endpoint is one address of one port of a Service.
type endpoint struct {
	at                          netip.AddrPort
	ready, terminatingButServes bool
	local                       bool
	group                       string                     // by the Service's Split
	hints                       *discoveryv1.EndpointHints // who should be its clients; nil: everybody
}

// byService is our index of endpoint slices, by prefix because the informer is shared.
const byService = "rookery-services/service"

// serviceKey is the key of the Service that a slice belongs to.
func serviceKey(s *discoveryv1.EndpointSlice) string {
	return s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
}

func serviceOf(obj any) ([]string, error) {
	if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
		return []string{serviceKey(s)}, nil
	}
	return nil, nil
}

// portEndpoints returns what the slices say of one port of a Service, sorted and without
// duplicates. Addresses on dead nodes go to dead instead.
func portEndpoints(of []*discoveryv1.EndpointSlice, port corev1.ServicePort, split *Split, alive func(string) bool, self Self, dead map[netip.Addr]struct{}) []endpoint {
	var out []endpoint
	for _, slice := range of {
		number, ok := slicePort(slice, port, self)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			// The API lets a consumer look at the first address only.
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil || !self.has(addr) {
				continue
			}
			node := ""
			if e.NodeName != nil {
				node = *e.NodeName
			}
			local := node != "" && node == self.Node
			if node != "" && !local && !alive(node) {
				dead[addr] = struct{}{}
				continue
			}
			c := e.Conditions
			ready := c.Ready == nil || *c.Ready
			serving := c.Serving == nil && ready || c.Serving != nil && *c.Serving
			group := ""
			if split != nil {
				group = split.Group(e)
			}
			out = append(out, endpoint{
				at: netip.AddrPortFrom(addr, number), ready: ready, local: local, group: group, hints: e.Hints,
				terminatingButServes: serving && c.Terminating != nil && *c.Terminating,
			})
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		// Of duplicates (an endpoint that moves between slices) the ready one counts.
		return cmp.Compare(rank(b), rank(a))
	})
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.at == b.at })
}

func rank(e endpoint) int {
	switch {
	case e.ready:
		return 2
	case e.terminatingButServes:
		return 1
	}
	return 0
}

// slicePort is the number that the port of a Service has in a slice; ok is false where the
// slice has none, or is of the other family.
func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort, self Self) (number uint16, ok bool) {
	family := discoveryv1.AddressTypeIPv4
	if self.family() == knftables.IPv6Family {
		family = discoveryv1.AddressTypeIPv6
	}
	if slice.AddressType != family {
		return 0, false
	}
	for _, p := range slice.Ports {
		name, proto := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if p.Port != nil && name == port.Name && proto == protocol(port) && *p.Port > 0 && *p.Port < 1<<16 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

// usable returns the endpoints that get traffic: the ready ones; if there is none,
// those that terminate but still serve, so that the last replica of a rollout is not
// cut off before its successor is there.
func usable(all []endpoint, localOnly bool) []endpoint {
	var ready, last []endpoint
	for _, e := range all {
		switch {
		case localOnly && !e.local:
		case e.ready:
			ready = append(ready, e)
		case e.terminatingButServes:
			last = append(last, e)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return last
}

// near returns those of the endpoints that are meant for clients of this node, or else of
// this zone, as the hints of a Service's trafficDistribution say. If one endpoint has no
// hint, the slices are about to change; if none is meant for here, none is near: then it is
// all of them.
func near(all []endpoint, node, zone string) []endpoint {
	pick := func(meant func(*discoveryv1.EndpointHints) (here, hinted bool)) (out []endpoint) {
		for _, e := range all {
			if e.hints == nil {
				return nil
			}
			here, hinted := meant(e.hints)
			if !hinted {
				return nil
			}
			if here {
				out = append(out, e)
			}
		}
		return out
	}
	if out := pick(func(h *discoveryv1.EndpointHints) (bool, bool) {
		return slices.Contains(h.ForNodes, discoveryv1.ForNode{Name: node}), len(h.ForNodes) > 0
	}); len(out) > 0 {
		return out
	}
	if out := pick(func(h *discoveryv1.EndpointHints) (bool, bool) {
		return slices.Contains(h.ForZones, discoveryv1.ForZone{Name: zone}), len(h.ForZones) > 0
	}); len(out) > 0 {
		return out
	}
	return all
}

func protocol(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}
