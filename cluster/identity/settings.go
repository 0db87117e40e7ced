package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Settings is what a cluster was created with and every peer must agree on. It
// cannot be changed later. It is handed to a joiner and kept beside the keys.
type Settings struct {
	// PodCIDR is the pods' network; each peer gets a /24 of it (IPv6: a /64).
	PodCIDR netip.Prefix `json:"podCIDR"`
	// ServiceCIDR is the network of ClusterIPs; its first address is the Service
	// `kubernetes`.
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	// DNS is the cluster DNS address, within ServiceCIDR.
	DNS netip.Addr `json:"dns"`
	// Second are the same of the other IP family, in a dual-stack cluster. Zero: the
	// cluster has the family of PodCIDR only.
	Second Ranges `json:"second,omitzero"`
	// Domain is the cluster's DNS domain, without a dot at either end.
	Domain string `json:"domain"`
	// Backend is how packets travel between peers, as the cluster was made: "wireguard",
	// "vxlan" or "direct".
	Backend string `json:"backend"`
}

// Ranges are a cluster's addresses in one IP family.
type Ranges struct {
	PodCIDR     netip.Prefix `json:"podCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	DNS         netip.Addr   `json:"dns"`
}

// DefaultSettings are those of docs/design/identity.md.
func DefaultSettings() Settings {
	return Settings{
		PodCIDR:     netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		DNS:         netip.MustParseAddr("10.43.0.10"),
		Domain:      "cluster.local",
		Backend:     "wireguard",
	}
}

// Ranges are those of each IP family that the cluster has, the one that comes first in
// every list of addresses (Kubernetes' primary family) before the other.
func (s Settings) Ranges() []Ranges {
	first := Ranges{PodCIDR: s.PodCIDR, ServiceCIDR: s.ServiceCIDR, DNS: s.DNS}
	if s.Second == (Ranges{}) {
		return []Ranges{first}
	}
	return []Ranges{first, s.Second}
}

// Networks are the pod and Service networks of every family.
func (s Settings) Networks() (all []netip.Prefix) {
	for _, r := range s.Ranges() {
		all = append(all, r.PodCIDR, r.ServiceCIDR)
	}
	return all
}

// ServiceIPs are the addresses that the Service `kubernetes` may have: the first of each
// Service network.
func (s Settings) ServiceIPs() (all []netip.Addr) {
	for _, r := range s.Ranges() {
		all = append(all, r.ServiceCIDR.Masked().Addr().Next())
	}
	return all
}

// PeerBits is the prefix length of one peer's share of PodCIDR.
func (s Settings) PeerBits() int { return peerBits(s.PodCIDR) }

func peerBits(pods netip.Prefix) int {
	if pods.Addr().Is4() {
		return 24
	}
	return 64
}

// PeerCIDRs are a peer's shares of each of [Settings.Ranges], from its share of PodCIDR:
// the share of the second family has the same number, so it needs no record of its own.
func (s Settings) PeerCIDRs(first netip.Prefix) []netip.Prefix {
	out := []netip.Prefix{first.Masked()}
	if second := s.Second.PodCIDR; second.IsValid() {
		out = append(out, share(second, number(s.PodCIDR, first)))
	}
	return out
}

// number counts the shares of pods that come before p.
func number(pods, p netip.Prefix) uint64 {
	return shareBits(p.Addr()) - shareBits(pods.Masked().Addr())
}

// share is the one of that number.
func share(pods netip.Prefix, number uint64) netip.Prefix {
	start := pods.Masked().Addr()
	n := shareBits(start) + number
	if start.Is4() {
		b := [4]byte{byte(n >> 16), byte(n >> 8), byte(n)}
		return netip.PrefixFrom(netip.AddrFrom4(b), peerBits(pods))
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], n)
	return netip.PrefixFrom(netip.AddrFrom16(b), peerBits(pods))
}

// shareBits are the bits of an address that tell the share: 24 of IPv4, 64 of IPv6.
func shareBits(a netip.Addr) uint64 {
	b := a.AsSlice()
	if a.Is4() {
		return uint64(binary.BigEndian.Uint32(b) >> 8)
	}
	return binary.BigEndian.Uint64(b)
}

// Validate says what cannot work, in the user's words.
func (s Settings) Validate() error {
	for _, r := range s.Ranges() {
		if err := r.validate(); err != nil {
			return err
		}
	}
	switch second := s.Second; {
	case second == (Ranges{}):
	case second.PodCIDR.Addr().Is4() == s.PodCIDR.Addr().Is4():
		return fmt.Errorf("pod networks %s and %s are of one IP family; a cluster has one of IPv4, one of IPv6, or one of each", s.PodCIDR, second.PodCIDR)
	case peerBits(second.PodCIDR)-second.PodCIDR.Bits() < s.PeerBits()-s.PodCIDR.Bits():
		return fmt.Errorf("pod network %s has fewer /%d for peers than %s has /%d; use a /%d", second.PodCIDR, peerBits(second.PodCIDR), s.PodCIDR, s.PeerBits(),
			peerBits(second.PodCIDR)-(s.PeerBits()-s.PodCIDR.Bits()))
	}
	switch {
	case s.Domain == "":
		return errors.New("the cluster needs a DNS domain, for example cluster.local")
	case s.Backend != "wireguard" && s.Backend != "vxlan" && s.Backend != "direct":
		return fmt.Errorf("network backend %q is not known; use wireguard, vxlan or direct", s.Backend)
	}
	return nil
}

func (r Ranges) validate() error {
	switch {
	case !r.PodCIDR.IsValid():
		return errors.New("the cluster needs a pod network, for example 10.42.0.0/16")
	case !r.ServiceCIDR.IsValid():
		return errors.New("the cluster needs a service network, for example 10.43.0.0/16")
	case r.PodCIDR.Addr().Is4() != r.ServiceCIDR.Addr().Is4():
		return fmt.Errorf("pod network %s and service network %s are of different IP families; give one of each family to both, in the same order", r.PodCIDR, r.ServiceCIDR)
	case r.PodCIDR.Bits() > peerBits(r.PodCIDR):
		return fmt.Errorf("pod network %s is too small: each peer takes a /%d of it; use a /%d", r.PodCIDR, peerBits(r.PodCIDR), peerBits(r.PodCIDR)-8)
	case r.ServiceCIDR.Addr().BitLen()-r.ServiceCIDR.Bits() < 4:
		return fmt.Errorf("service network %s is too small; use a /%d", r.ServiceCIDR, r.ServiceCIDR.Addr().BitLen()-16)
	case r.PodCIDR.Overlaps(r.ServiceCIDR):
		return fmt.Errorf("pod network %s and service network %s overlap; choose two that do not", r.PodCIDR, r.ServiceCIDR)
	case !r.ServiceCIDR.Contains(r.DNS):
		return fmt.Errorf("cluster DNS address %s is not within the service network %s", r.DNS, r.ServiceCIDR)
	}
	return nil
}
