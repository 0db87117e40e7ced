// Package policy enforces NetworkPolicies (networking/v1) on this peer's pods: egress
// where a connection begins, ingress where it ends, so that both ends have a say.
//
// What the rules shall be is computed purely ([compile]) from the policies, the pods
// and the namespaces; package nft writes the difference. The same model says which
// tracked connections are not allowed any more, and these are ended.
//
// As upstream, a policy selects no pod in the host's network, a pod always reaches
// itself, and what the machine itself sends to its own pods (probes, port-forward) is
// always let through. Unlike the host of a pod in general, the cluster DNS of the own
// peer is open to every pod, as there is no pod that a policy could name for it.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Self is what the rules of one IP family need to know of the peer they are for. The
// family is that of DNS.
type Self struct {
	Node string     // the peer's name
	DNS  netip.Addr // the cluster DNS, answered by the peer itself
}

func (s Self) family() knftables.Family { return nft.FamilyOf(s.DNS) }

// pick is the first of the addresses that is of the family, zero if none is.
func (s Self) pick(all []netip.Addr) netip.Addr {
	for _, a := range all {
		if nft.FamilyOf(a) == s.family() {
			return a
		}
	}
	return netip.Addr{}
}

// objects is what everything is computed from.
type objects struct {
	policies   []*networkingv1.NetworkPolicy
	pods       []*corev1.Pod
	namespaces []*corev1.Namespace
	// local are the addresses of this peer's pods by UID. They count, not those of the
	// API, which come later and stay longer.
	local map[string][]netip.Addr
}

// direction is which end of a connection the selected pods are.
type direction string

const (
	ingress direction = "ingress"
	egress  direction = "egress"
)

// model is the policies as far as this peer has to enforce them, in one IP family.
type model struct {
	family knftables.Family
	// isolated has, for each direction, the pods of this peer that a policy selects,
	// each with the policies that do. What none of them allows is refused.
	isolated map[direction]map[netip.Addr][]*side
	dns      netip.Addr
}

// side is one direction of one policy.
type side struct {
	name   string // unique among the policies, fit for the name of a chain
	dir    direction
	allows []allow
}

// allow is one rule of a side: peers and ports that are let through.
type allow struct {
	everyone bool
	selected bool // peers are selected by labels: pods counts, even if it is empty
	pods     map[netip.Addr]struct{}
	blocks   []block

	everyPort bool
	ports     []portRange
	named     bool // named ports are asked for: targets counts, even if it is empty
	targets   map[target]struct{}
}

type block struct {
	in     netip.Prefix
	except []netip.Prefix
}

// portRange is the ports of a protocol from first to last; all if first is zero.
type portRange struct {
	proto       string // lower case
	first, last uint16
}

// target is a named port of one pod.
type target struct {
	addr  netip.Addr
	proto string
	port  uint16
}

// member is a pod with an address of the pod network.
type member struct {
	*corev1.Pod
	addr  netip.Addr
	local bool
}

// compile computes the model of self's family. What of a policy cannot be read allows nothing, and is in
// the error; the model is good nevertheless.
func compile(o objects, self Self) (model, error) {
	var errs []error
	m := model{family: self.family(), dns: self.DNS, isolated: map[direction]map[netip.Addr][]*side{ingress: {}, egress: {}}}
	c := compiler{family: self.family(), members: members(o, self), namespaces: map[string]labels.Set{}}
	for _, ns := range o.namespaces {
		c.namespaces[ns.Name] = ns.Labels
	}
	for _, p := range o.policies {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			errs = append(errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
			continue
		}
		var selected []member
		for _, pod := range c.members {
			if pod.local && pod.Namespace == p.Namespace && selector.Matches(labels.Set(pod.Labels)) {
				selected = append(selected, pod)
			}
		}
		if len(selected) == 0 {
			continue
		}
		for _, dir := range []direction{ingress, egress} {
			if !applies(p, dir) {
				continue
			}
			s, err := c.side(p, dir, selected)
			if err != nil {
				errs = append(errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
			}
			for _, pod := range selected {
				m.isolated[dir][pod.addr] = append(m.isolated[dir][pod.addr], s)
			}
		}
	}
	return m, errors.Join(errs...)
}

// members are the pods that packets can come from or go to under an address of their own.
func members(o objects, self Self) []member {
	var out []member
	for _, pod := range o.pods {
		if pod.Spec.HostNetwork {
			continue
		}
		m := member{Pod: pod}
		if pod.Spec.NodeName == self.Node {
			m.addr, m.local = self.pick(o.local[string(pod.UID)]), true
		} else if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			m.addr = self.pick(addresses(pod))
		}
		if m.addr.IsValid() {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b member) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.UID, b.UID))
	})
	return out
}

func addresses(pod *corev1.Pod) (out []netip.Addr) {
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func applies(p *networkingv1.NetworkPolicy, dir direction) bool {
	if len(p.Spec.PolicyTypes) == 0 { // the API fills it in; this is its default
		return dir == ingress || len(p.Spec.Egress) > 0
	}
	for _, t := range p.Spec.PolicyTypes {
		if strings.EqualFold(string(t), string(dir)) {
			return true
		}
	}
	return false
}

// compiler has what the rules of all policies refer to.
type compiler struct {
	family     knftables.Family
	members    []member
	namespaces map[string]labels.Set
}

func (c compiler) side(p *networkingv1.NetworkPolicy, dir direction, selected []member) (*side, error) {
	s := &side{name: string(dir) + "-" + name(p), dir: dir}
	var errs []error
	add := func(a allow, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		s.allows = append(s.allows, a)
	}
	if dir == ingress {
		for _, rule := range p.Spec.Ingress {
			add(c.allow(p.Namespace, rule.From, rule.Ports, func([]member) []member { return selected }))
		}
	} else {
		for _, rule := range p.Spec.Egress {
			add(c.allow(p.Namespace, rule.To, rule.Ports, func(peers []member) []member { return peers }))
		}
	}
	return s, errors.Join(errs...)
}

// name is the policy's, shortened where a chain's (of at most 255 characters) has no room for it.
func name(p *networkingv1.NetworkPolicy) string {
	if len(p.Name) <= 100 {
		return p.Namespace + "/" + p.Name
	}
	h := fnv.New64a()
	h.Write([]byte(p.Name))
	return fmt.Sprintf("%s/%s~%x", p.Namespace, p.Name[:80], h.Sum64())
}

// allow compiles one rule. ends are the pods at which a named port is looked up: the
// selected ones for ingress, the peers for egress.
func (c compiler) allow(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, ends func(peers []member) []member) (allow, error) {
	a := allow{everyone: len(peers) == 0, everyPort: len(ports) == 0, pods: map[netip.Addr]struct{}{}, targets: map[target]struct{}{}}
	var found []member
	for _, peer := range peers {
		if peer.IPBlock != nil {
			b, ok, err := blockOf(peer.IPBlock, c.family)
			if err != nil {
				return allow{}, err
			}
			if ok {
				a.blocks = append(a.blocks, b)
			}
			continue
		}
		a.selected = true
		matching, err := c.matching(namespace, peer)
		if err != nil {
			return allow{}, err
		}
		found = append(found, matching...)
	}
	for _, m := range found {
		a.pods[m.addr] = struct{}{}
	}
	if len(a.blocks) > 0 || a.everyone {
		found = c.members // a named port behind an address block is that of the pod there
	}
	for _, port := range ports {
		if r, ok := rangeOf(port); ok {
			a.ports = append(a.ports, r)
			continue
		}
		a.named = true
		for _, end := range ends(found) {
			a.resolve(end, port)
		}
	}
	return a, nil
}

func (c compiler) matching(namespace string, peer networkingv1.NetworkPolicyPeer) (out []member, err error) {
	pods, namespaces := labels.Everything(), labels.Selector(nil)
	if peer.PodSelector != nil {
		if pods, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil, err
		}
	}
	if peer.NamespaceSelector != nil {
		if namespaces, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return nil, err
		}
	}
	for _, m := range c.members {
		inside := m.Namespace == namespace
		if namespaces != nil {
			ns, known := c.namespaces[m.Namespace]
			inside = known && namespaces.Matches(ns)
		}
		if inside && pods.Matches(labels.Set(m.Labels)) {
			out = append(out, m)
		}
	}
	return out, nil
}

// blockOf reads an ipBlock; ok is false for one of another family.
func blockOf(b *networkingv1.IPBlock, family knftables.Family) (out block, ok bool, err error) {
	if out.in, err = netip.ParsePrefix(b.CIDR); err != nil {
		return block{}, false, err
	}
	for _, text := range b.Except {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return block{}, false, err
		}
		out.except = append(out.except, p.Masked())
	}
	out.in, out.except = out.in.Masked(), nft.Outermost(out.except)
	return out, nft.FamilyOf(out.in.Addr()) == family, nil
}

// rangeOf reads a port by number, or none at all; ok is false for one by name.
func rangeOf(p networkingv1.NetworkPolicyPort) (r portRange, ok bool) {
	r.proto = protocol(p.Protocol)
	if p.Port == nil {
		return r, true
	}
	if p.Port.StrVal != "" {
		return r, false
	}
	r.first = uint16(p.Port.IntVal)
	r.last = r.first
	if p.EndPort != nil {
		r.last = uint16(*p.EndPort)
	}
	return r, true
}

func (a *allow) resolve(end member, port networkingv1.NetworkPolicyPort) {
	proto := protocol(port.Protocol)
	// A sidecar is an init container that goes on.
	for _, c := range append(slices.Clone(end.Spec.Containers), end.Spec.InitContainers...) {
		for _, p := range c.Ports {
			if p.Name == port.Port.StrVal && protocol(&p.Protocol) == proto {
				a.targets[target{end.addr, proto, uint16(p.ContainerPort)}] = struct{}{}
			}
		}
	}
}

func protocol(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return "tcp"
	}
	return strings.ToLower(string(*p))
}
