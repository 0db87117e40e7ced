package identity

import (
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
	// Domain is the cluster's DNS domain, without a dot at either end.
	Domain string `json:"domain"`
	// Backend is how packets travel between peers, as the cluster was made: "wireguard",
	// "vxlan" or "direct".
	Backend string `json:"backend"`
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

// ServiceIP is the address of the Service `kubernetes`: the first of ServiceCIDR.
func (s Settings) ServiceIP() netip.Addr { return s.ServiceCIDR.Masked().Addr().Next() }

// PeerBits is the prefix length of one peer's share of PodCIDR.
func (s Settings) PeerBits() int {
	if s.PodCIDR.Addr().Is4() {
		return 24
	}
	return 64
}

// Validate says what cannot work, in the user's words.
func (s Settings) Validate() error {
	switch {
	case !s.PodCIDR.IsValid():
		return errors.New("the cluster needs a pod network, for example 10.42.0.0/16")
	case !s.ServiceCIDR.IsValid():
		return errors.New("the cluster needs a service network, for example 10.43.0.0/16")
	case s.PodCIDR.Bits() > s.PeerBits():
		return fmt.Errorf("pod network %s is too small: each peer takes a /%d of it; use a /16", s.PodCIDR, s.PeerBits())
	case s.ServiceCIDR.Addr().BitLen()-s.ServiceCIDR.Bits() < 4:
		return fmt.Errorf("service network %s is too small; use a /16", s.ServiceCIDR)
	case s.PodCIDR.Overlaps(s.ServiceCIDR):
		return fmt.Errorf("pod network %s and service network %s overlap; choose two that do not", s.PodCIDR, s.ServiceCIDR)
	case !s.ServiceCIDR.Contains(s.DNS):
		return fmt.Errorf("cluster DNS address %s is not within the service network %s", s.DNS, s.ServiceCIDR)
	case s.Domain == "":
		return errors.New("the cluster needs a DNS domain, for example cluster.local")
	case s.Backend != "wireguard" && s.Backend != "vxlan":
		return fmt.Errorf("network backend %q is not known; use wireguard or vxlan", s.Backend)
	}
	return nil
}
