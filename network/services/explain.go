package services

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Candidate is an endpoint of one port of a Service, and what a peer makes of it.
type Candidate struct {
	Port string // the Service's port by its name, or else its number
	At   netip.AddrPort
	Node string // "" for one outside the cluster
	Pod  string // "" for one that is no pod
	// LeftOut is why clients on this peer are not sent there; "" if they are.
	LeftOut string
}

// Explain says which endpoints of self's family get the connections that begin on the peer,
// with the same decisions as the rules, and why the others do not; nothing for a Service
// that is not of the family. split and alive are as in [Config].
func Explain(svc *corev1.Service, of []*discoveryv1.EndpointSlice, split func(*corev1.Service) *Split, alive func(node string) bool, self Self) (out []Candidate) {
	if svc.Spec.ClusterIP != corev1.ClusterIPNone && len(self.clusterIPs(svc)) == 0 {
		return nil
	}
	var groups *Split
	if split != nil {
		groups = split(svc)
	}
	local := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	for _, port := range svc.Spec.Ports {
		could := usable(portEndpoints(of, port, groups, alive, self, map[netip.Addr]struct{}{}), local)
		chosen := could
		if !local {
			chosen = near(could, self.Node, self.Zone)
		}
		for _, slice := range of {
			number, ok := slicePort(slice, port, self)
			if !ok {
				continue
			}
			for _, e := range slice.Endpoints {
				if c, ok := candidate(e, number); ok {
					c.Port = portName(port)
					c.LeftOut = reason(e, c, could, chosen, groups, alive, self, local)
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func candidate(e discoveryv1.Endpoint, port uint16) (c Candidate, ok bool) {
	if len(e.Addresses) == 0 {
		return c, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return c, false
	}
	c.At = netip.AddrPortFrom(addr, port)
	if e.NodeName != nil {
		c.Node = *e.NodeName
	}
	if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		c.Pod = e.TargetRef.Name
	}
	return c, true
}

func reason(e discoveryv1.Endpoint, c Candidate, could, chosen []endpoint, groups *Split, alive func(string) bool, self Self, local bool) string {
	has := func(list []endpoint) bool {
		for _, e := range list {
			if e.at == c.At {
				return true
			}
		}
		return false
	}
	isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
	terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
	switch {
	case has(chosen) && groups != nil && groups.Weights[groups.Group(e)] <= 0:
		return "its group has no share of the traffic"
	case has(chosen):
		return ""
	case c.Node != "" && c.Node != self.Node && !alive(c.Node):
		return "peer " + c.Node + " is dead"
	case local && c.Node != self.Node:
		return "on another peer, and internalTrafficPolicy is Local"
	case has(could):
		return "meant for clients of other zones or peers"
	case terminating:
		return "terminating"
	case !isReady:
		return "not ready"
	}
	return "not used"
}
