package services

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one address of one port of a Service.
type endpoint struct {
	at                          netip.AddrPort
	ready, terminatingButServes bool
	local                       bool
}

// portEndpoints returns what the slices say of one port of a Service, sorted and without
// duplicates. Addresses on dead nodes go to dead instead.
func portEndpoints(of []*discoveryv1.EndpointSlice, port corev1.ServicePort, alive func(string) bool, self Self, dead map[netip.Addr]struct{}) []endpoint {
	var out []endpoint
	for _, slice := range of {
		number, ok := slicePort(slice, port)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			// The API lets a consumer look at the first address only.
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil || !addr.Is4() {
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
			out = append(out, endpoint{
				at: netip.AddrPortFrom(addr, number), ready: ready, local: local,
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

func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	if slice.AddressType != discoveryv1.AddressTypeIPv4 {
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
func usable(all []endpoint, localOnly bool) []netip.AddrPort {
	var ready, last []netip.AddrPort
	for _, e := range all {
		switch {
		case localOnly && !e.local:
		case e.ready:
			ready = append(ready, e.at)
		case e.terminatingButServes:
			last = append(last, e.at)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return last
}

func protocol(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}
